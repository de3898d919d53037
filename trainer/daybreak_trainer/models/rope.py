"""Rotary coordinates that a place in the image keeps when the resolution rises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stretches(resolutions: Sequence[int]) -> list[float]:
    """For each stage, how many steps of the last stage's grid one of its own spans; `resolutions`
    are the stages'. The last has 1, to the bit."""
    return [resolutions[-1] / resolution for resolution in resolutions]


def places(grid: tuple[int, int], step: float, device: torch.device) -> Tensor:
    """`(1, tokens, 2)`, row and column of each token's middle, counted in the grid of which one
    token here spans `step`; with 1 they are 0, 1, 2 and so on (nano-t2i stretches corners)."""
    rows, columns = (
        (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * step - 0.5
        for count in grid
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(1, -1, 2)
