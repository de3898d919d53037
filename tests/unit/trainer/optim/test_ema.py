"""The averaged weights: what is exported."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from daybreak_trainer.optim.ema import Ema


def model(values: torch.Tensor) -> nn.Module:
    holder = nn.Module()
    holder.weight = nn.Parameter(values.clone())
    return holder


def averaged(course: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The average after the weights took each value of `course`, the first one at the start."""
    holder = model(course[0])
    ema = Ema(holder, decay)
    for step, values in enumerate(course[1:], start=1):
        with torch.no_grad():
            holder.weight.copy_(values)
        ema.update(step)
    return ema.shadow["weight"]


@settings(max_examples=40)
@given(steps=st.integers(1, 40), decay=st.floats(0.0, 0.9999))
def test_it_is_the_weighted_mean_of_all_weights(steps: int, decay: float) -> None:
    """Closed form: each step's weights, times 1 - decay of that step, times all later decays, where
    a step's decay is min(decay, (1 + step) / (10 + step))."""
    course = list(torch.randn((steps + 1, 3), generator=torch.Generator().manual_seed(steps)))
    decays = [1.0] + [min(decay, (1 + step) / (10 + step)) for step in range(1, steps + 1)]
    expected = torch.zeros(3, dtype=torch.float64)
    for number, values in enumerate(course):
        share = 1.0 if number == 0 else 1 - decays[number]
        for later in decays[number + 1 :]:
            share *= later
        expected += share * values.double()
    torch.testing.assert_close(averaged(course, decay).double(), expected, rtol=1e-4, atol=1e-6)


def test_the_first_weights_are_soon_forgotten() -> None:
    """They are noise: after a hundred steps less than 1e-7 of them is left, where a decay of 0.9999
    without warm-up would keep 99 %."""
    course = [torch.ones(1)] + [torch.zeros(1)] * 100
    assert 0 <= float(averaged(course, 0.9999)) < 1e-7


def test_weights_that_stand_still_are_their_own_average() -> None:
    """At any decay."""
    assert averaged([torch.full((2,), 3.0)] * 20, 0.99).tolist() == pytest.approx([3.0, 3.0])


def test_a_shards_average_is_the_averages_shard() -> None:
    """Each rank averages its own part: put together they are the whole model's average, to the
    bit."""
    course = list(torch.randn((12, 10), generator=torch.Generator().manual_seed(0)))
    whole = averaged(course, 0.99)
    parts = [averaged([values[cut] for values in course], 0.99) for cut in (slice(4), slice(4, 10))]
    assert torch.equal(torch.cat(parts), whole)


def test_it_is_kept_in_fp32_and_apart_from_the_model() -> None:
    """bf16 has too few bits for small steps, and an average that shared memory would be none."""
    holder = model(torch.ones(2, dtype=torch.bfloat16))
    ema = Ema(holder, 0.9)
    assert ema.shadow["weight"].dtype == torch.float32
    with torch.no_grad():
        holder.weight.zero_()
    assert ema.shadow["weight"].tolist() == [1.0, 1.0]
    assert not ema.shadow["weight"].requires_grad
