"""How a step's samples become passes through the model.

A rank's share of the global batch may be more than its device takes at once; then the gradients of
several passes add up. Every rank makes equally many passes over equally many rows, because each
pass is collective and one shape is compiled once. Where a rank has fewer samples than rows, rows
that do not count fill up: the slowest rank sets the pace anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


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
