"""The frozen autoencoder in whose latents a denoiser works.

diffusers' `AutoencoderDC` (DC-AE, arXiv 2410.10733) or `AutoencoderKL` (arXiv 2112.10752).

Latents here are *scaled*: `(z - shift) * scaling`, with the factors of the autoencoder's own
configuration, so that they have about unit deviation. diffusers' pipelines undo just that before
they decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daybreak_trainer.data.latents import LatentSpace
from daybreak_trainer.models.pretrained import checksum, loaded
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.recipe.denoiser import Latent

_CLASSES = ("AutoencoderDC", "AutoencoderKL")
_PROBE_PIXELS = 256


@dataclass(frozen=True, eq=False)
class Autoencoder:
    module: nn.Module
    """diffusers' own object: what a pipeline takes as `vae`."""
    space: LatentSpace

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents `(batch, channels, height / downsampling, width / downsampling)`, fp32, of
        uint8 `images` `(batch, 3, height, width)`; computed in the module's own precision.

        Of an AutoencoderKL's distribution it is the mean: a draw from it would have to be made anew
        in every epoch, which stored latents cannot, and its deviation is small against the noise
        that training adds.
        """
        weight = next(self.module.parameters())
        pixels = (images.to(weight.device).float() / 127.5 - 1.0).to(weight.dtype)
        with torch.no_grad():
            latents = _latents(self.module, pixels)
        return (latents.float() - self.space.shift) * self.space.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(batch, 3, height, width)`, fp32, about -1..1, of scaled latents."""
        weight = next(self.module.parameters())
        unscaled = latents.to(weight.device).float() / self.space.scaling + self.space.shift
        module: Any = self.module
        with torch.no_grad():
            images: Tensor = module.decode(unscaled.to(weight.dtype), return_dict=False)[0]
        return images.float()


def _latents(module: Any, pixels: Tensor) -> Tensor:
    encoded = module.encode(pixels)
    found: Tensor = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    return found


def build(recipe: Latent) -> Autoencoder:
    """The autoencoder of a recipe, on the CPU in fp32.

    Raises:
        RecipeError: it cannot be loaded, or has other channels or downsampling than the recipe.
        HubUnreachableError: its repository does not answer.
    """
    found = load(recipe.autoencoder, "recipe.latent.autoencoder")
    for field in ("channels", "downsampling"):
        said, has = getattr(recipe, field), getattr(found.space, field)
        if said != has:
            raise RecipeError(
                f"recipe.latent.{field} is {said}, the autoencoder {recipe.autoencoder!r} has {has}"
            )
    return found


def load(source: str, field: str) -> Autoencoder:
    """An autoencoder, on the CPU in fp32, frozen. `field` is what named it, for messages.

    Raises:
        RecipeError, HubUnreachableError: as `build`.
    """
    return loaded(field, "an autoencoder", source, lambda: _load(source))


def _load(source: str) -> Autoencoder:
    import diffusers

    kind = diffusers.AutoencoderKL.load_config(source).get("_class_name")
    if kind not in _CLASSES:
        raise ValueError(f"it is of class {kind}, not {' or '.join(_CLASSES)}")
    module, loading = getattr(diffusers, kind).from_pretrained(
        source, torch_dtype=torch.float32, output_loading_info=True
    )
    # diffusers draws what is missing at random and goes on.
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"its weights lack {len(missing)} tensors, among them {missing[0]}")
    module.requires_grad_(False).eval()
    shift = getattr(module.config, "shift_factor", None) or 0.0
    if hasattr(module.config, "shift_factor"):
        module.register_to_config(shift_factor=shift)  # PRXPipeline would add None to latents
    channels, downsampling = _shape(module)
    space = LatentSpace(
        autoencoder=source,
        checksum=checksum(module),
        scaling=float(module.config.scaling_factor),
        shift=float(shift),
        channels=channels,
        downsampling=downsampling,
    )
    return Autoencoder(module, space)


def _shape(module: Any) -> tuple[int, int]:
    """Channels and downsampling, from shapes alone: nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        latents = _latents(module, torch.zeros(1, 3, _PROBE_PIXELS, _PROBE_PIXELS))
    return latents.shape[1], _PROBE_PIXELS // latents.shape[2]
