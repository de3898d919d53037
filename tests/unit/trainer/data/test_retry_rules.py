"""How long a store is given, and how much is asked of it at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from faulty_data_store import FaultyFolder
from hypothesis import given
from hypothesis import strategies as st
from mds_folders import name_of, write_latents

from daybreak_trainer.data.errors import DataUnavailableError
from daybreak_trainer.data.pace import Pace
from daybreak_trainer.data.retry import RetryPolicy

MIB = 1 << 20


@given(st.floats(10, 7200))
def test_a_store_is_given_up_before_the_clock_that_ends_the_process(seconds: float) -> None:
    """Whatever that clock is: the last attempt begins and ends before; requests end before their
    attempt, so that it is the store's word which is said; and a store gets a second attempt."""
    policy = RetryPolicy.within(seconds)
    waits = policy.first_wait_seconds + policy.longest_wait_seconds
    assert policy.total_seconds + waits + policy.stall_seconds < seconds
    assert policy.stall_seconds < policy.total_seconds
    patience = policy.patience
    assert patience.request_seconds(0) < policy.stall_seconds
    assert patience.answer_seconds is not None
    assert patience.answer_seconds < policy.stall_seconds
    assert policy.total_seconds <= RetryPolicy().total_seconds


def test_a_store_that_hangs_is_given_up_in_time(
    reader: Callable[..., Any], faulty: FaultyFolder
) -> None:
    """For real, with every request hanging: each is left after a quarter of the time, and none
    begins after half of it. The usual policy would take ten minutes."""
    write_latents(faulty.root, [5])
    _, shards = reader("faulty://store", policy=RetryPolicy.within(6)).shards()
    released = threading.Event()
    faulty.fault = lambda _name, _before: released.wait() and None
    started = time.monotonic()
    with pytest.raises(DataUnavailableError, match=name_of(0)):
        shards.get(0)
    assert 3 < time.monotonic() - started < 60
    assert faulty.requests[name_of(0)] <= 2
    released.set()
    shards.close()


@given(st.integers(100, 1 << 32), st.floats(0, 0.1))
def test_a_steady_store_is_asked_for_what_it_sends_in_seconds(speed: int, delay: float) -> None:
    """At any speed in bytes a second a part soon takes two to ten seconds, where limits allow: a
    fast store is not asked for more than a few MiB, which memory holds."""
    pace = Pace()
    for _ in range(20):
        pace.took(pace.size, delay + pace.size / speed)
    assert 1 << 16 <= pace.size <= 8 * MIB
    assert pace.size == 1 << 16 or pace.size / speed <= 10
    assert pace.size == 8 * MIB or pace.size / speed + delay >= 2


@given(st.lists(st.booleans(), max_size=30))
def test_what_does_not_arrive_is_asked_for_in_smaller_parts(fates: list[bool]) -> None:
    """Each failure makes the next part smaller, down to a limit, and success lets it grow again."""
    pace = Pace()
    for failed in fates:
        before = pace.size
        if failed:
            pace.failed(before)
            assert pace.size < before or pace.size == 1 << 16
        else:
            pace.took(before, 0.1)
            assert pace.size > before or pace.size == 8 * MIB
