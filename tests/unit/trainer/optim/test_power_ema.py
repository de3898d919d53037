"""Averages that are put together after the run: of any width, at any time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from daybreak_trainer.optim.power_ema import PowerEma
from daybreak_trainer.optim.power_profile import Combination, Profile, combine, gamma

WIDTHS = (0.05, 0.10)
TAKEN, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


@pytest.mark.parametrize(("deviation", "expected"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558)])
def test_the_exponent_of_a_width(deviation: float, expected: float) -> None:
    """The paper's own values; and back: the deviation of times that the power function weighs."""
    exponent = gamma(deviation)
    assert exponent == pytest.approx(expected, abs=5e-4)
    variance = (exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))
    assert variance**0.5 == pytest.approx(deviation, rel=1e-9)


@pytest.mark.parametrize("deviation", [0.0, -0.1, 0.29, 1.0])
def test_no_power_function_is_that_wide(deviation: float) -> None:
    """Refused in a sentence with the number."""
    with pytest.raises(ValueError, match=f"{deviation:g} is not above 0 and at most 0.28"):
        gamma(deviation)


profiles = st.builds(Profile, st.floats(0.02, 0.25), st.floats(1.0, 1e9))


@settings(max_examples=20)
@given(a=profiles, b=profiles)
def test_the_inner_product_is_the_integral(a: Profile, b: Profile) -> None:
    """Against a sum over ten thousand points in time, and the same both ways."""
    end = min(a.samples, b.samples)
    tau = (np.arange(10_000) + 0.5) / 10_000
    values = [(p.gamma + 1) * (tau * end / p.samples) ** p.gamma / p.samples * end for p in (a, b)]
    product = float(np.mean(values[0] * values[1])) / end
    assert a.inner(b) == pytest.approx(product, rel=1e-3, abs=1e-30)
    assert a.inner(b) == b.inner(a)


def kept(snapshots: int, total: float) -> list[Profile]:
    return [
        Profile(width, total * number / snapshots)
        for number in range(1, snapshots + 1)
        for width in WIDTHS
    ]


@settings(max_examples=20)
@given(
    snapshots=st.integers(1, 16),
    total=st.floats(1e3, 1e9),
    deviation=st.floats(0.03, 0.25),
    at=st.floats(0.1, 1.0),
)
def test_coefficients_add_up_to_one(
    snapshots: int, total: float, deviation: float, at: float
) -> None:
    """Whatever is wanted, and no sum with the same total is closer than the one that is found."""
    have, wanted = kept(snapshots, total), Profile(deviation, at * total)
    found = combine(have, wanted)
    assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-9)
    best = distance(have, found.coefficients, wanted)
    assert found.error == pytest.approx(best, abs=1e-3)
    generator = np.random.default_rng(0)
    for _ in range(5):
        nudge = generator.normal(size=len(have))
        other = found.coefficients + 1e-2 * (nudge - nudge.mean())
        assert distance(have, other, wanted) >= best - 1e-6


def distance(have: list[Profile], coefficients: np.ndarray, wanted: Profile) -> float:
    """Relative L2 distance, from the inner products."""
    gram = np.array([[a.inner(b) for b in have] for a in have])
    cross = np.array([a.inner(wanted) for a in have])
    square = coefficients @ gram @ coefficients - 2 * coefficients @ cross + wanted.inner(wanted)
    return float(np.sqrt(max(square, 0.0) / wanted.inner(wanted)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("number", [1, 7, 16])
def test_a_snapshot_is_put_together_from_itself(width: float, number: int) -> None:
    """At a kept width and time: that snapshot alone, to the bit."""
    have = kept(16, 1e6)
    wanted = Profile(width, 1e6 * number / 16)
    found = combine(have, wanted)
    expected = [1.0 if profile == wanted else 0.0 for profile in have]
    assert found == Combination(found.coefficients, 0.0)
    assert found.coefficients.tolist() == expected


def test_the_equations_find_a_snapshot_too() -> None:
    """What differs from a snapshot by a hair is that snapshot but for a hair: the shortcut for what
    is equal hides no wrong solution."""
    have = kept(8, 1e6)
    found = combine(have, Profile(0.05 + 1e-9, 5e5))
    chosen = have.index(Profile(0.05, 5e5))
    others = np.delete(found.coefficients, chosen)
    assert found.coefficients[chosen] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(others).max() < 1e-4


def model(value: float = 0.0) -> nn.Module:
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.full((3,), value))
    return holder


def trajectory(steps: int) -> torch.Tensor:
    """Weights that learn, sway and shake, `(steps, 3)`."""
    time = torch.linspace(0, 1, steps, dtype=torch.float64)
    noise = torch.randn((steps, 3), generator=torch.Generator().manual_seed(0)).double()
    smooth = torch.stack([1 - torch.exp(-5 * time), torch.sin(9 * time), time**2], dim=1)
    return (smooth + 0.3 * noise).float()


def power_average(course: torch.Tensor, deviation: float, batch: int) -> torch.Tensor:
    """Closed form: each step's weights times the integral of the profile over the step."""
    edges = torch.arange(len(course) + 1, dtype=torch.float64) * batch
    mass = (edges / edges[-1]) ** (gamma(deviation) + 1)
    return ((mass[1:] - mass[:-1])[:, None] * course.double()).sum(0)


def test_an_average_is_the_profiles_integral_over_the_weights() -> None:
    """Both widths, over a course of steps, within rounding of fp32."""
    course = trajectory(400)
    holder = model()
    ema = PowerEma(holder, WIDTHS)
    for values in course:
        with torch.no_grad():
            holder.weight.copy_(values)
        ema.update(8, TAKEN)
    assert float(ema.samples) == 8 * 400
    for width in WIDTHS:
        expected = power_average(course, width, 8)
        torch.testing.assert_close(
            ema.shadows[width]["weight"].double(), expected, rtol=1e-5, atol=1e-5
        )


def test_another_width_is_put_together_from_bf16_snapshots() -> None:
    """2,000 steps, sixteen snapshots of two averages in bf16: widths that nobody kept, and one at a
    time between snapshots, are those of the true average within 2 % of the weights' size: what
    rounding to bf16 leaves."""
    course, batch = trajectory(2000), 8
    holder = model()
    ema = PowerEma(holder, WIDTHS)
    have: list[tuple[Profile, torch.Tensor]] = []
    for step, values in enumerate(course, start=1):
        with torch.no_grad():
            holder.weight.copy_(values)
        ema.update(batch, TAKEN)
        if step % 125 == 0:
            have += [
                (Profile(width, float(ema.samples)), shadow["weight"].bfloat16().double())
                for width, shadow in ema.shadows.items()
            ]
    for deviation, at in ((0.07, 2000), (0.15, 2000), (0.20, 2000), (0.07, 1550)):
        found = combine([profile for profile, _ in have], Profile(deviation, at * batch))
        made = sum(float(c) * value for c, (_, value) in zip(found.coefficients, have, strict=True))
        true = power_average(course[:at], deviation, batch)
        assert float((made - true).abs().max()) < 0.02, (deviation, at)
    last = torch.stack([value for _, value in have[-2:]])
    assert float((last - power_average(course, 0.20, batch)).abs().max()) > 0.05


def test_a_step_that_is_not_taken_moves_nothing() -> None:
    """Neither the averages nor their clock, at any time; also before the first step is taken."""
    holder = model(1.0)
    ema = PowerEma(holder, WIDTHS)
    ema.update(4, SKIPPED)
    assert float(ema.samples) == 0
    assert ema.shadows[0.05]["weight"].tolist() == [1.0] * 3
    with torch.no_grad():
        holder.weight.fill_(2.0)
    ema.update(4, TAKEN)
    assert ema.shadows[0.10]["weight"].tolist() == [2.0] * 3
    with torch.no_grad():
        holder.weight.fill_(3.0)
    ema.update(4, SKIPPED)
    assert (float(ema.samples), ema.shadows[0.10]["weight"].tolist()) == (4, [2.0] * 3)


def test_batches_of_other_sizes_only_move_the_clock() -> None:
    """A step on 12 samples is three steps on 4 in which the weights stand still."""
    together, apart = PowerEma(holder := model(), WIDTHS), PowerEma(holder, WIDTHS)
    for value in (1.0, -2.0, 0.5):
        with torch.no_grad():
            holder.weight.fill_(value)
        together.update(12, TAKEN)
        for _ in range(3):
            apart.update(4, TAKEN)
    for width in WIDTHS:
        torch.testing.assert_close(
            together.shadows[width]["weight"], apart.shadows[width]["weight"]
        )
