"""How a step's samples become passes through the model.

A rank's share of the global batch may be more than its device takes at once; then the gradients of
several passes add up. Every rank makes equally many passes over equally many rows, because each
pass is collective and one shape is compiled once. Where a rank has fewer samples than rows, rows
that do not count fill up: the slowest rank sets the pace anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """Samples `start ... stop - 1` of a rank's share count; `rows` in all go through the model."""

    start: int
    stop: int
    rows: int

    @property
    def counted(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PassPlan:
    """What all ranks do alike in a step."""

    passes: int
    rows: int
    """Of each pass, on each rank."""


def plan(global_size: int, world: int, device_batch_size: int | None) -> PassPlan:
    """The fewest passes that fit the device, for the rank with the most samples: the global batch
    is dealt out in shares that differ by at most one.

    `device_batch_size` None takes a share at once.
    """
    largest = -(-global_size // world)
    passes = -(-largest // device_batch_size) if device_batch_size else 1
    return PassPlan(passes, -(-largest // passes))


def split(plan: PassPlan, own: int) -> list[Pass]:
    """The passes of a rank with `own` samples, 0 included: what counts of each differs by at most
    one sample from pass to pass."""
    bounds = [own * number // plan.passes for number in range(plan.passes + 1)]
    return [Pass(a, b, plan.rows) for a, b in pairwise(bounds)]


def rows(values: Tensor, part: Pass) -> Tensor:
    """A pass's rows of `(batch, ...)`: those that count, and one of them again for the others."""
    counted = values[part.start : part.stop]
    missing = part.rows - part.counted
    if not missing:
        return counted
    filling = values[_filling(len(values), part)].unsqueeze(0)
    return torch.cat([counted, filling.expand(missing, *values.shape[1:])])


def row_numbers(length: int, part: Pass) -> npt.NDArray[np.int64]:
    """The same, as indices."""
    filling = [_filling(length, part)] * (part.rows - part.counted)
    return np.array([*range(part.start, part.stop), *filling], dtype=np.int64)


def _filling(length: int, part: Pass) -> int:
    return min(part.start, length - 1)
