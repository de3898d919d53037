"""The validation loss: of samples that training never sees, at fixed timesteps and fixed noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from daybreak_trainer.data.holdout import Indices
from daybreak_trainer.data.validation import ValidationBatch
from daybreak_trainer.models.text import Conditioner
from daybreak_trainer.objectives.validation import dense_losses
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.recipe import Recipe

BINS = ((0.0, 0.3), (0.3, 0.6), (0.6, 1.0))
"""PRX's: little noise, where textures are learned, to much, where the composition is."""
_TIMESTEPS_A_BIN = 4
TIMESTEPS = tuple(
    low + (high - low) * (number + 0.5) / _TIMESTEPS_A_BIN
    for low, high in BINS
    for number in range(_TIMESTEPS_A_BIN)
)
_NOISE_SEED = 7_001
"""The same in all runs, so that their losses compare."""
Clean = Callable[[ValidationBatch, Indices], Tensor]
"""Turns rows of a batch into images in -1..1 or scaled latents, on the device."""


@dataclass(frozen=True)
class ValidationLoss:
    loss: float
    """Mean over timesteps between 0 and 1, and over samples."""
    bins: dict[str, float]
    """The same within each of `BINS`."""
    samples: int


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some samples of a batch, as `dense_losses` takes them."""

    positions: Indices
    clean: Tensor
    captions: Sequence[str]


def validation_loss(
    model: nn.Module,
    text: Conditioner,
    recipe: Recipe,
    batches: Sequence[ValidationBatch],
    clean: Clean,
    rank: Rank,
    dtype: torch.dtype,
    rows: int,
    moved: Callable[[int], None],
) -> ValidationLoss | None:
    """Of all ranks' samples, which call this together; None without samples.

    At most `rows` samples go through the model at once; every rank takes part in every pass, with
    another of its samples where it has fewer than others. `moved` hears how many passes are done.
    """
    if not batches:
        return None
    sums = torch.zeros(len(TIMESTEPS), dtype=torch.float64)
    passes = 0
    for batch in batches:
        for start in range(0, batch.rows, rows):
            end = min(start + rows, batch.rows)
            part = _rows(batch, clean, start, end)
            losses = dense_losses(
                model, text, recipe.objective, part, TIMESTEPS, _NOISE_SEED, dtype
            )
            own = max(0, min(end, batch.own) - start)
            sums += losses[:, :own].double().sum(dim=1).cpu()
            passes += 1
            moved(passes)
    dist.all_reduce(sums)
    samples = sum(batch.total for batch in batches)
    means = (sums / samples).reshape(len(BINS), _TIMESTEPS_A_BIN).mean(dim=1).tolist()
    return ValidationLoss(
        loss=sum((high - low) * mean for (low, high), mean in zip(BINS, means, strict=True)),
        bins={f"{low:g}-{high:g}": mean for (low, high), mean in zip(BINS, means, strict=True)},
        samples=samples,
    )


def _rows(batch: ValidationBatch, clean: Clean, start: int, end: int) -> _Rows:
    """Rows of a pass; those that a rank has not are its last one again."""
    chosen = np.minimum(np.arange(start, end), len(batch.captions) - 1)
    return _Rows(
        batch.numbers[chosen],
        clean(batch, chosen),
        [batch.captions[row] for row in chosen],
    )
