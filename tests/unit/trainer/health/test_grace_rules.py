"""What of a grace period is the ranks'."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.health.grace import (
    abandon_seconds,
    grace_is_short,
    tell_seconds,
    usable_seconds,
)


@given(st.floats(0.1, 1e4))
def test_the_ranks_part_ends_before_the_pods(grace: float) -> None:
    """Each part leaves something for the next, and all of them for the termination message."""
    parts = (0.0, usable_seconds(grace), abandon_seconds(grace), tell_seconds(grace), grace)
    assert list(parts) == sorted(set(parts))


def test_a_save_needs_a_multiple_of_its_time() -> None:
    """120 s of grace leave 115 for the ranks: a save of 38 s fits three times, one of 39 not."""
    assert not grace_is_short(38.0, 120.0)
    assert grace_is_short(39.0, 120.0)
