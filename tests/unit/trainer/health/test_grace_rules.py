"""What of a grace period is the ranks'."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.health.grace import grace_is_short, seconds_left, usable_seconds


@given(st.floats(0.1, 1e4), st.floats(0, 1e6), st.floats(0, 2e4))
def test_the_ranks_part_ends_before_the_pods(grace: float, at: float, later: float) -> None:
    """Something is left for the termination message, and nothing for ranks after their part."""
    usable = usable_seconds(grace)
    assert 0 < usable < grace
    left = seconds_left(grace, at, at + later)
    assert left == pytest.approx(max(0.0, usable - later), abs=1e-6)


def test_a_save_needs_a_multiple_of_its_time() -> None:
    """120 s of grace leave 115 for the ranks: a save of 38 s fits three times, one of 39 not."""
    assert not grace_is_short(38.0, 120.0)
    assert grace_is_short(39.0, 120.0)
