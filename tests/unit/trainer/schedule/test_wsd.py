"""The learning rate's course: up, along, down to nothing, without a jump."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.recipe.optimizer import Schedule
from daybreak_trainer.schedule.wsd import factor

SCHEDULES = st.builds(
    lambda warmup, share: Schedule(warmup_steps=warmup, cooldown_share=share),
    st.integers(0, 80),
    st.floats(0, 1, allow_nan=False),
)


@given(schedule=SCHEDULES, total=st.integers(1, 300))
def test_the_factor_stays_within_its_bounds(schedule: Schedule, total: int) -> None:
    """Positive, or a step would be lost; never above the recipe's own rate."""
    assert all(0 < factor(schedule, step, total) <= 1 for step in range(total))


@given(schedule=SCHEDULES, total=st.integers(1, 300))
def test_it_rises_then_falls(schedule: Schedule, total: int) -> None:
    """Up to the end of the warm-up or the begin of the cooldown; from there never up again, unless
    the two overlap."""
    course = [factor(schedule, step, total) for step in range(total)]
    start = int(total - schedule.cooldown_share * total)
    rising = course[: min(schedule.warmup_steps, start)]
    assert rising == sorted(rising)
    falling = course[max(schedule.warmup_steps, 0) :]
    assert falling == sorted(falling, reverse=True)


@given(schedule=SCHEDULES, total=st.integers(1, 300))
def test_it_never_jumps(schedule: Schedule, total: int) -> None:
    """A step changes it by one warm-up step, or by the first of the root's steps, which is its
    steepest."""
    course = [factor(schedule, step, total) for step in range(total)]
    up = 1 / schedule.warmup_steps if schedule.warmup_steps else 0.0
    down = 1 / sqrt(schedule.cooldown_share * total + 1)
    # The cooldown may begin between two steps: its first step is up to one long.
    assert all(-down - 1e-9 <= after - before <= up + 1e-9 for before, after in pairwise(course))


@given(total=st.integers(20, 5000), share=st.floats(0.1, 1.0))
def test_it_ends_at_almost_nothing(total: int, share: float) -> None:
    """The last step's factor is 1 - sqrt(n / (n + 1)) for n cooldown steps: below 1 / 2n."""
    schedule = Schedule(warmup_steps=0, cooldown_share=share)
    assert factor(schedule, total - 1, total) <= 1 / (2 * share * total) + 1e-12


@given(total=st.integers(1, 500), step=st.integers(0, 499))
def test_without_warm_up_and_cooldown_it_is_constant(total: int, step: int) -> None:
    """One all the way."""
    assert factor(Schedule(warmup_steps=0, cooldown_share=0), min(step, total - 1), total) == 1


def test_its_parts_are_where_the_recipe_says() -> None:
    """Linear to the warm-up's last step, one until the cooldown, then the root."""
    schedule = Schedule(warmup_steps=4, cooldown_share=0.25)
    course = [factor(schedule, step, 100) for step in range(100)]
    assert course[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert course[74] == 1.0
    assert course[75] == pytest.approx(1 - sqrt(1 / 26))
    assert course[99] == pytest.approx(1 - sqrt(25 / 26))
