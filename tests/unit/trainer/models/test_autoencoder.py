"""The frozen autoencoder: refused where it is not what the recipe says, exact where it encodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_autoencoders import CHANNELS, save_dc, save_kl

from daybreak_trainer.models import autoencoder
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.recipe.denoiser import Latent


def recipe(folder: Path, channels: int = CHANNELS, downsampling: int = 4) -> Latent:
    return Latent(autoencoder=str(folder), channels=channels, downsampling=downsampling)


@pytest.mark.parametrize("save", [save_kl, save_dc])
def test_pipelines_undo_the_scaling(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    """What is encoded and then decoded as diffusers' pipelines do is what the module itself makes
    of the image; our own decoding is the same."""
    found = autoencoder.build(recipe(save(tmp_path)))
    images = torch.randint(256, (3, 3, 16, 24), dtype=torch.uint8)
    latents = found.encode(images)
    assert latents.shape == (3, CHANNELS, 4, 6)
    module, config = found.module, found.module.config
    pixels = images.float() / 127.5 - 1
    encoded = module.encode(pixels)
    raw = encoded.latent if save is save_dc else encoded.latent_dist.mean
    decoded = module.decode(raw).sample
    unscaled = latents / config.scaling_factor + getattr(config, "shift_factor", 0.0)
    torch.testing.assert_close(unscaled, raw)
    torch.testing.assert_close(found.decode(latents), decoded)


def test_no_shift_is_a_shift_of_zero(tmp_path: Path) -> None:
    """`PRXPipeline` adds the configuration's shift to latents, and None cannot be added."""
    found = autoencoder.build(recipe(save_kl(tmp_path, shift=0.0)))
    assert found.space.shift == found.module.config.shift_factor == 0.0


@pytest.mark.parametrize(
    ("field", "options"), [("channels", {"channels": 8}), ("downsampling", {"downsampling": 8})]
)
def test_another_shape_than_the_recipes_is_refused(
    tmp_path: Path, field: str, options: dict[str, int]
) -> None:
    """Before a day of training, with the field's name."""
    with pytest.raises(RecipeError, match=rf"recipe\.latent\.{field} is 8, .* has 4"):
        autoencoder.build(recipe(save_kl(tmp_path), **options))


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    """An empty folder, another class, and weights that are not all there."""
    with pytest.raises(RecipeError, match=r"recipe\.latent\.autoencoder: cannot load"):
        autoencoder.build(recipe(tmp_path / "nothing"))
    folder = save_kl(tmp_path / "kl")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(RecipeError, match="of class UNet2DModel, not AutoencoderDC or"):
        autoencoder.build(recipe(folder))
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    with pytest.raises(RecipeError, match="its weights lack"):
        autoencoder.build(recipe(folder))


def test_the_checksum_is_of_the_weights(tmp_path: Path) -> None:
    """Two copies are one autoencoder; other weights are another."""
    one, two = (autoencoder.build(recipe(save_kl(tmp_path / name))) for name in "ab")
    other = autoencoder.build(recipe(save_kl(tmp_path / "c", seed=1)))
    assert one.space.difference(two.space) is None
    assert (one.space.difference(other.space) or "").startswith("checksum")
