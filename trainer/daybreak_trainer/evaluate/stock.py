"""What differs between the diffusers pipelines that an export is one of: how the transformer is
called, what it puts out, and where from and where to.

Each call is the pipeline's own with the arguments that training asks for: prompts as they are, the
recipe's number of tokens, no aspect-ratio bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


class Text(NamedTuple):
    """Of prompts, behind as many empty or negative ones where there is guidance."""

    states: Tensor
    """`(batch, tokens, width)`."""
    mask: Tensor
    """`(batch, tokens)`."""


@dataclass(frozen=True)
class Stock:
    """A `PRXPipeline`, on latents, or on pixels where it has no autoencoder."""

    pipeline: Any
    prediction: Literal["x", "v"] = "v"

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.pipeline.transformer.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.pipeline.transformer.dtype
        return found

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is denoised: channels, height, width."""
        size = self.pixels // self.downsampling
        return self.pipeline.transformer.config.in_channels, size, size

    @property
    def tokens(self) -> int:
        """Of an image."""
        _, height, width = self.shape
        patch = int(self.pipeline.transformer.config.patch_size)
        return (height // patch) * (width // patch)

    @property
    def pixels(self) -> int:
        """Side of an image."""
        return int(self.pipeline.config.default_sample_size)

    @property
    def downsampling(self) -> int:
        return 1 if self._autoencoder is None else int(self.pipeline.vae_scale_factor)

    @property
    def noise_scale(self) -> float:
        return 1.0

    def encode(self, prompts: Sequence[str], negative: str, guided: bool) -> Text:
        embedded = self._encoded(list(prompts), negative, guided)
        return _behind(embedded) if guided else Text(*embedded[:2])

    def _encoded(self, prompts: list[str], negative: str, guided: bool) -> Any:
        return self.pipeline.encode_prompt(
            prompts, self.device, guided, negative, skip_text_cleaning=True
        )

    def output(self, latents: Tensor, moment: Tensor, text: Text) -> Tensor:
        """The transformer's, fp32, at t = `moment`, a scalar in 0..1."""
        found: Tensor = self.pipeline.transformer(
            hidden_states=latents.to(self.dtype),
            timestep=moment.to(self.device).expand(len(latents)),
            encoder_hidden_states=text.states.to(self.dtype),
            attention_mask=text.mask,
            return_dict=False,
        )[0]
        return found.float()

    def images(self, latents: Tensor) -> Tensor:
        """`(batch, 3, height, width)`, about -1..1."""
        vae = self._autoencoder
        if vae is None:
            return latents
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents = latents / vae.config.scaling_factor + shift
        decoded: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return decoded.float()

    @property
    def _autoencoder(self) -> Any:
        return getattr(self.pipeline, "vae", None)


class PixelStock(Stock):
    """A `PRXPixelPipeline`."""

    @property
    def noise_scale(self) -> float:
        return float(self.pipeline.config.noise_scale)


class SanaStock(Stock):
    """A `SanaPipeline`, on latents, or on pixels where it has no autoencoder."""

    @property
    def pixels(self) -> int:
        return int(self.pipeline.transformer.config.sample_size) * self.downsampling

    def _encoded(self, prompts: list[str], negative: str, guided: bool) -> Any:
        return self.pipeline.encode_prompt(
            prompts,
            guided,
            negative,
            device=self.device,
            max_sequence_length=self.pipeline.tokenizer.model_max_length,
            complex_human_instruction=None,
        )

    def output(self, latents: Tensor, moment: Tensor, text: Text) -> Tensor:
        transformer = self.pipeline.transformer
        time = moment * self.pipeline.scheduler.config.num_train_timesteps
        found: Tensor = transformer(
            latents.to(self.dtype),
            encoder_hidden_states=text.states.to(self.dtype),
            encoder_attention_mask=text.mask,
            timestep=time.to(self.device).expand(len(latents)) * transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return found.float()


def _behind(embedded: Any) -> Text:
    states, mask, no_states, no_mask = embedded
    return Text(torch.cat([no_states, states]), torch.cat([no_mask, mask]))


def of(pipeline: Any) -> Stock:
    """How to draw with a pipeline that was exported here."""
    match type(pipeline).__name__:
        case "PRXPixelPipeline":
            return PixelStock(pipeline, "x")
        case "SanaPipeline":
            return SanaStock(pipeline)
    return Stock(pipeline)
