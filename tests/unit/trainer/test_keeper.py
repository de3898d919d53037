"""When averages are kept: in every part of a run once, whatever its plan does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.keeper import is_due
from daybreak_trainer.recipe import resolve
from daybreak_trainer.schedule.course import OPEN, Course

RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [
            {"resolution": 16, "share": 0.5, "batchSize": 5},
            {"resolution": 16, "share": 0.5, "batchSize": 3},
        ],
    }
)


def course(*ends: int) -> Course:
    return Course(RECIPE, ends, ())


def kept(plans: dict[int, Course], parts: int) -> list[int]:
    """Steps after which averages are kept; `plans` are those that hold from a step on."""
    now, step, found = plans[0], 0, [0]
    while step < now.total_steps:
        step += 1
        if is_due(step, found[-1], now, parts):
            found.append(step)
        now = plans.get(step, now)
    return found[1:]


@given(first=st.integers(0, 60), second=st.integers(0, 60), parts=st.integers(1, 16))
def test_every_part_of_a_run_has_one(first: int, second: int, parts: int) -> None:
    """At the first step that ends it; parts that are shorter than a step share one."""
    whole = course(first, first + second)
    total = whole.samples_at(whole.total_steps)
    wanted = {
        min(s for s in range(1, whole.total_steps + 1) if whole.samples_at(s) * parts >= n * total)
        for n in range(1, parts + 1)
        if total
    }
    assert kept({0: whole}, parts) == sorted(wanted)


@pytest.mark.parametrize(
    ("before", "after", "expected"), [(100, 50, [31, 50]), (50, 100, [25, 50, 100])]
)
def test_a_run_that_changes_its_length_misses_none(
    before: int, after: int, expected: list[int]
) -> None:
    """Decided after step 30: of the shorter run the middle has passed, and is kept with the next
    step; of the longer one it is still to come."""
    assert kept({0: course(before, before), 30: course(after, after)}, 2) == expected


def test_an_attempt_that_goes_on_behind_a_due_step_keeps_at_once() -> None:
    """The store failed at step 25, and what is gone on from is a commit of step 40."""
    assert not is_due(40, 25, course(100, 100), 4)
    assert is_due(41, 0, course(100, 100), 4)


def test_nothing_is_due_before_the_length_is_decided() -> None:
    assert not is_due(10_000, 0, replace(course(0, 0), ends=(OPEN, OPEN)), 16)
