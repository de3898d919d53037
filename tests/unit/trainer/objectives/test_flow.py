"""The flow-matching objective: what is drawn for a sample, its noising, what its loss means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.objectives import flow
from daybreak_trainer.objectives.flow import Draws
from daybreak_trainer.recipe import resolve
from daybreak_trainer.recipe.objective import Objective

CPU = torch.device("cpu")
BASE = resolve({"preset": "smoke"}).objective
SHAPE = (1, 1, 1)


def objective(**changes: Any) -> Objective:
    return Objective.model_validate(BASE.model_dump() | changes)


def drawn(
    wanted: Objective,
    count: int,
    start: int = 0,
    dropout: float = 0.0,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
) -> Draws:
    return flow.draw(wanted, dropout, seed, np.arange(start, start + count), shape, CPU)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_time_runs_from_data_to_noise() -> None:
    """At t=0 the image itself, at t=1 the noise alone, between them the straight line."""
    x, noise = images(3), images(3).flip(0)
    t = torch.tensor([0.0, 1.0, 0.25])
    noised = flow.noised(x, Draws(t, noise, [False] * 3))
    assert torch.equal(noised[0], x[0])
    assert torch.equal(noised[1], noise[1])
    torch.testing.assert_close(noised[2], 0.75 * x[2] + 0.25 * noise[2])


@given(t=st.floats(0.06, 1.0), error=st.floats(-2.0, 2.0))
def test_the_loss_is_that_of_the_velocity(t: float, error: float) -> None:
    """Above the floor: ||v_pred - v||^2 with v = noise - x, and v_pred of the x-prediction that
    `x = x_t - t v` gives."""
    x, noise = images().double(), images().flip(0).double()
    times = torch.full((4,), t, dtype=torch.float64)
    x_t = flow.noised(x, Draws(times, noise, [False] * 4))
    prediction = x + error * images().flip(1).double()
    velocity, predicted = noise - x, (x_t - prediction) / t
    wanted = (predicted - velocity).square().mean(dim=(1, 2, 3))
    found = flow.loss_per_sample(objective(), prediction, x, times)
    # The loss rounds the prediction to fp32.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


def test_below_the_floor_the_weight_stands_still() -> None:
    """1/t^2 would be endless at the data's end."""
    x = images(2)
    found = flow.loss_per_sample(
        objective(timestep_floor=0.2), x + 0.1, x, torch.tensor([0.0, 0.2])
    )
    torch.testing.assert_close(found, torch.full((2,), 0.1**2 / 0.2**2))


def test_each_sample_has_its_own_loss() -> None:
    """Changing one sample changes one loss, by its own pixels and time."""
    x, t = images(), torch.tensor([0.1, 0.4, 0.7, 1.0])
    prediction = x + 0.5
    before = flow.loss_per_sample(objective(), prediction, x, t)
    prediction[2] += 1.0
    after = flow.loss_per_sample(objective(), prediction, x, t)
    assert (before != after).tolist() == [False, False, True, False]
    torch.testing.assert_close(after[2], torch.tensor(1.5**2 / 0.7**2))


@settings(max_examples=30)
@given(
    start=st.integers(0, 2**40),
    batch=st.integers(1, 12),
    world=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_draws_do_not_depend_on_how_a_batch_is_split(
    start: int, batch: int, world: int, seed: int
) -> None:
    """Any number of ranks draws, to the bit, what one rank draws."""
    whole = drawn(objective(), batch, start, 0.5, seed, (3, 2, 2))
    for rank in range(world):
        part = rank_slice(batch, rank, world)
        if part.stop == part.start:
            continue
        mine = drawn(objective(), part.stop - part.start, start + part.start, 0.5, seed, (3, 2, 2))
        assert torch.equal(mine.timesteps, whole.timesteps[part])
        assert torch.equal(mine.noise, whole.noise[part])
        assert torch.equal(mine.drop_caption, whole.drop_caption[part])


def test_positions_and_seeds_draw_differently() -> None:
    """No two samples of a run, and no two runs, share their noise."""
    seeds = {flow.sample_seed(seed, position) for seed in range(50) for position in range(200)}
    assert len(seeds) == 50 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_timesteps_are_logit_normal() -> None:
    """Their logits have the recipe's mean and standard deviation."""
    wanted = objective(timestep_mean=-0.8, timestep_std=0.7, timestep_uniform_share=0.0)
    logits = torch.logit(drawn(wanted, 4000).timesteps.double())
    # Four standard errors of a mean, and of a standard deviation, of 4,000.
    assert float(logits.mean()) == pytest.approx(-0.8, abs=4 * 0.7 / 4000**0.5)
    assert float(logits.std()) == pytest.approx(0.7, abs=4 * 0.7 / 8000**0.5)


def _farthest(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Kolmogorov-Smirnov distance between samples and a distribution, its values at them sorted."""
    count = len(values)
    steps = torch.arange(1, count + 1) / count
    return float(
        torch.maximum((steps - expected).abs(), (steps - 1 / count - expected).abs()).max()
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_share_of_timesteps_is_uniform_and_all_are_shifted(share: float, shift: float) -> None:
    """The distribution is the mix, of logit-normal and uniform, after t = a u / (1 + (a - 1) u)."""
    count = 4000
    wanted = objective(timestep_uniform_share=share, timestep_shift=shift)
    t = drawn(wanted, count).timesteps.double().sort().values
    assert float(t[0]) >= 0
    assert float(t[-1]) <= 1
    u = t / (shift - (shift - 1) * t)
    normal = torch.special.ndtr(torch.logit(u.clamp(1e-9, 1 - 1e-9)))
    # 1.95 / sqrt(n): one false alarm in a thousand; the draws are the same every time.
    assert _farthest(t, share * u + (1 - share) * normal) < 1.95 / count**0.5


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(0.0, 0, 0), (0.1, 320, 480), (1.0, 4000, 4000)]
)
def test_captions_are_dropped_at_the_recipes_rate(rate: float, least: int, most: int) -> None:
    """None, about a tenth, all; and independently of the timestep."""
    draws = drawn(objective(), 4000, dropout=rate)
    assert least <= int(draws.drop_caption.sum()) <= most
    if 0 < rate < 1:
        dropped = draws.drop_caption
        gap = draws.timesteps[dropped].mean() - draws.timesteps[~dropped].mean()
        assert abs(float(gap)) < 0.05


def test_noise_has_the_recipes_scale() -> None:
    """Normal, with mean zero and the standard deviation `noiseScale`."""
    noise = drawn(objective(noise_scale=2.0), 50, shape=(3, 16, 16)).noise
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(noise.std()) == pytest.approx(2.0, rel=0.02)
