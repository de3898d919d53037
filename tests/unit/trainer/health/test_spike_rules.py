"""Loss spikes: found when they are real, and hardly ever when they are not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.health.spikes import MINIMUM_STEPS, WINDOW_STEPS, Spike, SpikeDetector


def losses(seed: int, steps: int, noise: float) -> list[float]:
    """A falling loss, from 1 to 0.1, with relative noise."""
    generator = np.random.default_rng(seed)
    curve = 0.1 + 0.9 / (1 + np.arange(steps) / 200)
    return list(curve * np.exp(noise * generator.standard_normal(steps)))


def spikes(values: list[float]) -> list[Spike]:
    detector = SpikeDetector()
    found = (detector.observe(step, value) for step, value in enumerate(values, start=1))
    return [spike for spike in found if spike is not None]


def test_noise_is_no_spike() -> None:
    """50,000 steps of falling, noisy losses: not one alarm at 10 and 20 % of noise."""
    for noise in (0.1, 0.2):
        found = [spike for seed in range(13) for spike in spikes(losses(seed, 2000, noise))]
        assert found == []


@settings(max_examples=50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(MINIMUM_STEPS, 600),
    st.floats(2.0, 1000.0),
    st.floats(0.0, 0.07),
)
def test_a_doubled_loss_is_a_spike(seed: int, at: int, factor: float, noise: float) -> None:
    """At the step where it rises, with what was typical before."""
    values = losses(seed, at + 20, noise)
    values[at] = max(values[at - 8 : at]) * factor
    found = spikes(values)
    assert [spike.step for spike in found] == [at + 1]
    assert found[0].loss == values[at]
    assert found[0].typical < found[0].loss / 1.3


def test_a_threefold_loss_is_a_spike_in_stronger_noise() -> None:
    """At 12 %, as with small batches."""
    for seed in range(50):
        values = losses(seed, 500, 0.12)
        values[400] = values[399] * 3
        assert [spike.step for spike in spikes(values)] == [401]


def test_a_plateau_is_reported_once_and_becomes_normal() -> None:
    """Not at each of its steps; a second rise above it counts again."""
    quiet = [1.0, 1.01] * (WINDOW_STEPS // 2)
    values = quiet + [3.0, 3.03] * WINDOW_STEPS + [9.0] + [3.0] * 3
    assert [spike.loss for spike in spikes(values)] == [3.0, 9.0]


def test_a_fall_is_none() -> None:
    """Only upward."""
    assert spikes([3.0] * 100 + [0.1] * 100) == []


def test_another_stage_starts_afresh() -> None:
    """Its loss is another."""
    detector = SpikeDetector()
    for step in range(200):
        detector.observe(step, 0.1)
    detector.reset()
    assert detector.observe(200, 5.0) is None


def test_what_is_not_finite_is_passed_over() -> None:
    """It has a policy of its own, and must not spoil the yardstick."""
    values = [1.0] * 100 + [float("nan"), float("inf")] * 3 + [1.0] * 10
    assert spikes(values) == []
    assert len(spikes([*values, 5.0])) == 1
