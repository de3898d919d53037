"""Flow matching: the straight path, the velocity, and what the loss means."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak_trainer.objectives import flow
from daybreak_trainer.recipe import resolve
from daybreak_trainer.recipe.objective import Objective

BASE = resolve({"preset": "smoke"}).objective
KINDS = ["x", "v"]


def objective(**changes: Any) -> Objective:
    return Objective.model_validate(BASE.model_dump() | changes)


def images(count: int = 4, seed: int = 1) -> Tensor:
    return torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def told(kind: str, x: Tensor, noise: Tensor) -> Tensor:
    """What a network that knows the answer puts out."""
    return x if kind == "x" else noise - x


def test_time_runs_from_data_to_noise() -> None:
    """At t=0 the image itself, at t=1 the noise alone, between them the straight line."""
    x, noise = images(3), images(3).flip(0)
    noised = flow.noised(x, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(noised[0], x[0])
    assert torch.equal(noised[1], noise[1])
    torch.testing.assert_close(noised[2], 0.75 * x[2] + 0.25 * noise[2])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(t=st.floats(0.05, 1.0))
def test_who_knows_the_answer_has_the_velocity_and_no_loss(kind: str, t: float) -> None:
    """Above the floor exactly v = noise - x, whichever of both is predicted."""
    wanted = objective(prediction=kind, timestep_floor=0.05)
    x, noise = images(), images(seed=2)
    times = torch.full((4,), t)
    output = told(kind, x, noise)
    found = flow.velocity(wanted, output, flow.noised(x, noise, times), times)
    torch.testing.assert_close(found, noise - x, rtol=1e-4, atol=1e-4)
    assert flow.loss_per_sample(wanted, output, x, noise, times).tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(t=st.floats(0.06, 1.0), error=st.floats(-2.0, 2.0))
def test_the_loss_is_that_of_the_velocity(kind: str, t: float, error: float) -> None:
    """Above the floor: ||v_pred - v||^2, with v_pred as `velocity` has it."""
    wanted = objective(prediction=kind, timestep_floor=0.05)
    x, noise = images().double(), images().flip(0).double()
    times = torch.full((4,), t, dtype=torch.float64)
    output = told(kind, x, noise) + error * images().flip(1).double()
    predicted = flow.velocity(wanted, output, flow.noised(x, noise, times), times)
    expected = (predicted - (noise - x)).square().mean(dim=(1, 2, 3))
    found = flow.loss_per_sample(wanted, output, x, noise, times)
    # The loss rounds the prediction to fp32.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_below_the_floor_the_weight_stands_still_and_at_it_nothing_jumps() -> None:
    """1/t^2 would be endless at the data's end."""
    x = images(4)
    t = torch.tensor([0.0, 0.2 - 1e-6, 0.2, 0.2 + 1e-6])
    found = flow.loss_per_sample(objective(timestep_floor=0.2), x + 0.1, x, x, t)
    torch.testing.assert_close(found, torch.full((4,), 0.1**2 / 0.2**2), rtol=1e-4, atol=0)


def test_each_sample_has_its_own_loss() -> None:
    """Changing one sample changes one loss, by its own pixels and time."""
    x, t = images(), torch.tensor([0.1, 0.4, 0.7, 1.0])
    prediction = x + 0.5
    before = flow.loss_per_sample(objective(), prediction, x, x, t)
    prediction[2] += 1.0
    after = flow.loss_per_sample(objective(), prediction, x, x, t)
    assert (before != after).tolist() == [False, False, True, False]
    torch.testing.assert_close(after[2], torch.tensor(1.5**2 / 0.7**2))


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_patches_do_not_count(kind: Literal["x", "v"]) -> None:
    """The mean is over kept patches, whatever is predicted elsewhere; with all kept it is the
    plain loss."""
    wanted, x, noise, t = objective(prediction=kind), images(), images(seed=2), torch.rand(4)
    output = images(seed=3)
    everything = torch.ones(4, 4, dtype=torch.bool)
    plain = flow.loss_per_sample(wanted, output, x, noise, t)
    torch.testing.assert_close(flow.loss_per_sample(wanted, output, x, noise, t, everything), plain)
    kept = torch.tensor([[True, False, False, True]]).expand(4, -1)
    masked = flow.loss_per_sample(wanted, output, x, noise, t, kept)
    corners = (slice(None), slice(None), slice(0, 2), slice(2, 4))
    spoilt = output.clone()
    spoilt[corners] = torch.nan  # patch 1: upper right
    torch.testing.assert_close(flow.loss_per_sample(wanted, spoilt, x, noise, t, kept), masked)
    two = torch.cat([output[:, :, :2, :2], output[:, :, 2:, 2:]], dim=2)
    cut = [torch.cat([i[:, :, :2, :2], i[:, :, 2:, 2:]], dim=2) for i in (x, noise)]
    torch.testing.assert_close(flow.loss_per_sample(wanted, two, *cut, t), masked)


@pytest.mark.parametrize("kind", KINDS)
def test_euler_recovers_a_point_in_one_step(kind: str) -> None:
    """From noise at t=1 to t=0 along the oracle's velocity: the path is straight."""
    x, noise, t = images(), images(seed=2), torch.ones(4)
    v = flow.velocity(objective(prediction=kind), told(kind, x, noise), noise, t)
    torch.testing.assert_close(noise - v, x)


@pytest.mark.parametrize("kind", KINDS)
def test_euler_over_gaussian_data_has_its_moments(kind: str) -> None:
    """For x ~ N(m, s^2) the best prediction is known, E[x | x_t]; sampling with it comes as close
    to m and s as the steps are many."""
    mean, deviation = 0.3, 0.5
    wanted = objective(prediction=kind, timestep_floor=1e-6)
    errors = []
    for steps in (10, 100):
        x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
        for k in range(steps, 0, -1):
            t = torch.full((len(x),), k / steps, dtype=torch.float64)
            at, keep = k / steps, 1 - k / steps
            gain = keep * deviation**2 / (keep**2 * deviation**2 + at**2)
            clean = mean + gain * (x - keep * mean)
            output = clean if kind == "x" else (x - clean) / at
            x = x - flow.velocity(wanted, output, x, t) / steps
        errors.append(abs(float(x.mean()) - mean) + abs(float(x.std()) - deviation))
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 2
