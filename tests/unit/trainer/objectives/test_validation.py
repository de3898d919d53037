"""The dense validation loss: of weights and samples alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daybreak_trainer.models import text_to_image
from daybreak_trainer.objectives.validation import dense_losses
from daybreak_trainer.recipe import resolve

WORDS = ["a", "blue", "red", "square"]


@dataclass(frozen=True)
class Held:
    positions: np.ndarray[tuple[int], np.dtype[np.int64]]
    clean: Tensor
    captions: tuple[str, ...]

    def only(self, rows: slice) -> Held:
        return Held(self.positions[rows], self.clean[rows], self.captions[rows])


def test_it_is_the_same_for_every_split_and_starts_at_the_velocitys_own_size() -> None:
    """Whatever the recipe routes; noise belongs to the sample, not to its place in a batch. A fresh
    model puts out zero."""
    routing = {"kind": "tread", "share": 0.5, "first": 1, "last": 2}
    recipe = resolve(
        {
            "preset": "smoke",
            "denoiser": {"depth": 3},
            "objective": {"routing": routing, "prediction": "v"},
        }
    )
    model, text = text_to_image.build(recipe, WORDS)
    clean = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    held = Held(np.array([4, 9, 7]), clean, ("a red square", "a blue square", ""))
    moments = (0.1, 0.5, 0.9)

    def losses(batch: Held, seed: int = 1) -> Tensor:
        return dense_losses(model, text, recipe.objective, batch, moments, seed, torch.float32)

    fresh = losses(held)
    assert fresh.shape == (3, 3)
    # noise - x, and x is uniform in -1..1.
    torch.testing.assert_close(fresh.mean(dim=1), torch.full((3,), 1 + 1 / 3), rtol=0.05, atol=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    whole = losses(held)
    parts = torch.cat([losses(held.only(slice(0, 1))), losses(held.only(slice(1, 3)))], dim=1)
    torch.testing.assert_close(parts, whole)
    assert torch.equal(losses(held), whole)
    assert not torch.equal(losses(held, seed=2), whole)
