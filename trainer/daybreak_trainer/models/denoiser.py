"""The denoiser of a recipe: the families by `recipe.denoiser.kind`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

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


@torch.no_grad()
def stock(
    recipe: Recipe,
    text_hidden_size: int,
    weights: Iterable[tuple[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    """The diffusers transformer with `weights`, which are the denoiser's by name in the order of
    its parameters. Memory is taken for its own, in `dtype` on `device`, and for one more tensor.

    Raises:
        KeyError: a weight is missing, or the transformer has none of this name.
    """
    with torch.device("meta"):
        denoiser = build(recipe, text_hidden_size)
    made = denoiser.stock().to(dtype)
    assert not list(made.buffers()), "a buffer has a value, which meta has not"
    made.to_empty(device=device)
    missing = dict(made.named_parameters())
    for name, value in denoiser.spelled_out(weights):
        missing.pop(name).copy_(value)
    if missing:
        raise KeyError(next(iter(missing)))
    return made.eval()
