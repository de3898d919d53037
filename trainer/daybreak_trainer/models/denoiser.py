"""The denoiser of a recipe: the families by `recipe.denoiser.kind`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from daybreak_trainer.models import prx, sana
from daybreak_trainer.models.family import Denoiser
from daybreak_trainer.recipe import Recipe

_PIXEL_CHANNELS = 3
_FAMILIES: dict[str, Callable[[Recipe, int, int], Denoiser]] = {
    "prx": prx.build,
    "sana": sana.build,
}


def channels(recipe: Recipe) -> int:
    """Of what the denoiser sees: colours, or the channels of a latent."""
    return _PIXEL_CHANNELS if recipe.latent is None else recipe.latent.channels


def build(recipe: Recipe, text_hidden_size: int) -> Denoiser:
    """A freshly initialised denoiser; equal for equal seeds, on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _FAMILIES[recipe.denoiser.kind](recipe, channels(recipe), text_hidden_size)
