"""Clipping is torch's. Over several ranks: `step/test_sharded_steps.py`."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from torch import nn

from daybreak_trainer.optim.clip import clip

SHAPES = [
    ((7, 5), torch.float32),
    ((0, 3), torch.float32),  # the shard of a rank that has nothing of a parameter
    ((11,), torch.bfloat16),
    ((2, 3, 4), torch.float32),
]


def parameters(first: float | None) -> list[nn.Parameter]:
    """With gradients, of which `first` may be one value; the last has none."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, dtype in SHAPES:
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = 3 * torch.randn(shape, generator=generator).to(dtype)
        found.append(parameter)
    if first is not None:
        assert found[0].grad is not None
        found[0].grad[0, 0] = first
    return [*found, nn.Parameter(torch.zeros(3))]


@pytest.mark.parametrize("limit", [0.5, 1e3])
@pytest.mark.parametrize("first", [None, nan, inf, -inf, 1e25])
def test_gradients_are_clipped_as_torch_does(limit: float, first: float | None) -> None:
    """Of mixed types, to the bit: below the limit, above it, and where one is no number."""
    mine, torchs = parameters(first), parameters(first)
    norm = clip(mine, limit)
    wanted = nn.utils.clip_grad_norm_(torchs, limit)
    torch.testing.assert_close(norm, wanted, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(mine, torchs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_without_a_limit_the_norm_alone_is_told() -> None:
    """And the gradients stay as they are."""
    mine, untouched = parameters(None), parameters(None)
    assert clip(mine, None) == nn.utils.clip_grad_norm_(untouched, 1e9)
    for one, other in zip(mine, untouched, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)
