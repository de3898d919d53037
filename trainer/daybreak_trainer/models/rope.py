"""Rotary coordinates that a place in the image keeps when the resolution rises."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor


def stretch(grid: tuple[int, int], sides: Sequence[int]) -> float:
    """Steps of the last stage's grid that one of `grid` (rows, columns) spans.

    `sides` are the stages' grids at their nominal resolution, tokens a side, the last stage's last.
    A bucket has about its stage's number of tokens, whatever its shape: the stage is the one whose
    number is nearest, so every bucket of the last stage has 1, to the bit.
    """
    tokens = grid[0] * grid[1]
    own = min(reversed(sides), key=lambda side: abs(log(side * side / tokens)))
    return sides[-1] / own


def places(grid: tuple[int, int], step: float, device: torch.device) -> Tensor:
    """`(1, tokens, 2)`, row and column of each token's middle, counted in the grid of which one
    token here spans `step`; with 1 they are 0, 1, 2 and so on (nano-t2i stretches corners)."""
    rows, columns = (
        (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * step - 0.5
        for count in grid
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(1, -1, 2)
