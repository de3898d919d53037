"""Timesteps: their distribution, the shift, and how stratification spreads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.objectives.timesteps import shifted, strata, timesteps
from daybreak_trainer.recipe import resolve
from daybreak_trainer.recipe.objective import Objective

BASE = resolve({"preset": "smoke"}).objective
COUNT = 4000


def objective(**changes: Any) -> Objective:
    return Objective.model_validate(BASE.model_dump() | changes)


def uniforms() -> torch.Tensor:
    return torch.rand(COUNT, generator=torch.Generator().manual_seed(0))


def test_timesteps_are_logit_normal() -> None:
    """Their logits have the recipe's mean and standard deviation."""
    wanted = objective(
        timestep_mean=-0.8, timestep_std=0.7, timestep_uniform_share=0.0, timestep_shift=1.0
    )
    logits = torch.logit(timesteps(wanted, uniforms()).double())
    # Four standard errors of a mean, and of a standard deviation.
    assert float(logits.mean()) == pytest.approx(-0.8, abs=4 * 0.7 / COUNT**0.5)
    assert float(logits.std()) == pytest.approx(0.7, abs=4 * 0.7 / (2 * COUNT) ** 0.5)


def _farthest(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Kolmogorov-Smirnov distance between samples and a distribution, its values at them sorted."""
    count = len(values)
    steps = torch.arange(1, count + 1) / count
    return float(
        torch.maximum((steps - expected).abs(), (steps - 1 / count - expected).abs()).max()
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_share_is_uniform_and_the_others_are_shifted(share: float, shift: float) -> None:
    """The distribution is the mix of a uniform one, and of t = a u / (1 + (a - 1) u) where u is
    logit-normal."""
    wanted = objective(
        timestep_mean=0.0, timestep_std=1.0, timestep_uniform_share=share, timestep_shift=shift
    )
    t = timesteps(wanted, uniforms()).double().sort().values
    assert float(t[0]) >= 0
    assert float(t[-1]) <= 1
    u = t / (shift - (shift - 1) * t)
    normal = torch.special.ndtr(torch.logit(u.clamp(1e-9, 1 - 1e-9)))
    # 1.95 / sqrt(n): one false alarm in a thousand; the draws are the same every time.
    assert _farthest(t, share * t + (1 - share) * normal) < 1.95 / COUNT**0.5
    if shift == 1.0:
        assert float(t.median()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_edges_are_numbers(share: float) -> None:
    """Uniforms reach 0, and in fp32 almost 1; a timestep is never 1, and a logit-normal one is what
    the last quantile that fp32 has says, five and a half deviations out."""
    edges = torch.tensor([0.0, 2.0**-24, 1.0 - 2.0**-24, 1.0])
    t = timesteps(objective(timestep_uniform_share=share, timestep_mean=0.0), edges)
    assert t.dtype == torch.float32
    assert bool(((t >= 0) & (t < 1)).all())
    if share < 1:
        assert bool((torch.logit(t[-2:].double()) < 5.6 * BASE.timestep_std + 2).all())


def test_the_last_part_of_many_ends_below_one() -> None:
    """Stratified: of a batch so large that fp32 cannot tell its last part from 1."""
    size = 2**15
    last = size - 1 + (1 - 2.0**-24)
    assert torch.tensor(float(size - 1)) + torch.tensor(1 - 2.0**-24) == size, "as fp32 has it"
    t = timesteps(objective(timestep_uniform_share=0.0), torch.tensor([last]).double() / size)
    assert float(t) < 1


@settings(max_examples=50)
@given(t=st.floats(0, 1), a=st.floats(0.1, 10), b=st.floats(0.1, 10))
def test_shifts_compose(t: float, a: float, b: float) -> None:
    """1 is none; two are one of their product; the ends stay; more noise stays more."""
    moment = torch.tensor([0.0, t, min(t + 0.01, 1.0), 1.0], dtype=torch.float64)
    assert torch.equal(shifted(moment, 1.0), moment)
    moved = shifted(moment, a)
    torch.testing.assert_close(shifted(moved, b), shifted(moment, a * b))
    assert moved[0] == 0
    torch.testing.assert_close(moved[-1], moment[-1])
    assert bool((moved.diff() >= -1e-12).all())


@settings(max_examples=50)
@given(seed=st.integers(0, 2**53), start=st.integers(0, 2**40), size=st.integers(1, 200))
def test_each_part_has_one_sample(seed: int, start: int, size: int) -> None:
    """Whatever part of the batch is asked for: a rank finds what one process finds."""
    whole = range(start, start + size)
    positions = np.arange(start, start + size)
    found = strata(seed, positions, whole)
    assert sorted(found) == list(range(size))
    mine = np.random.default_rng(0).permutation(positions)[: size // 2]
    assert (strata(seed, mine, whole) == found[mine - start]).all()


def test_steps_deal_the_parts_out_anew() -> None:
    """A place in the batch is not tied to a timestep."""
    first = strata(0, np.arange(64), range(64))
    assert (first != strata(0, np.arange(64, 128), range(64, 128))).any()
    assert (first != strata(1, np.arange(64), range(64))).any()
