"""The course of a run: stages one behind the other, and a learning rate that goes up, along, and
down to nothing without a jump, whatever is decided on the way."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.recipe import Recipe, resolve
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision


def recipe(warmup: int, share: float, *stages: dict[str, object]) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "schedule": {"warmupSteps": warmup, "cooldownShare": share},
            "stages": [{"resolution": 16, "batchSize": 4, **stage} for stage in stages],
        }
    )


def factors(course: Course) -> list[float]:
    return [course.factor(step) for step in range(course.total_steps)]


WARMUPS, SHARES, LENGTHS = st.integers(0, 80), st.floats(0, 0.99), st.integers(1, 300)


@given(warmup=WARMUPS, share=SHARES, longer=LENGTHS)
def test_it_rises_then_falls_within_its_bounds(warmup: int, share: float, longer: int) -> None:
    """Positive in every step, or one would be lost; a step changes it by one warm-up step, or by
    the first of the root's steps, which is its steepest."""
    total = warmup + longer
    course = factors(Course.of(recipe(warmup, share, {"steps": total})))
    assert all(0 < factor <= 1 for factor in course)
    start = int(total - share * total)
    rising, falling = course[: min(warmup, start)], course[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    up = 1 / warmup if warmup else 0.0
    down = 1 / sqrt(share * total + 1)
    assert all(-down - 1e-9 <= after - before <= up + 1e-9 for before, after in pairwise(course))


def test_its_parts_are_where_the_recipe_says() -> None:
    """Linear to the warm-up's last step, one until the cooldown, then the root; zero behind the
    last step."""
    course = Course.of(recipe(4, 0.25, {"steps": 100}))
    found = factors(course)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[74] == 1.0
    assert found[75] == pytest.approx(1 - sqrt(1 / 26))
    assert found[99] == pytest.approx(1 - sqrt(25 / 26))
    assert course.factor(100) == 0.0


def test_a_stage_has_its_own_factor_and_warm_up() -> None:
    """On top of the run's own course."""
    second = {"steps": 10, "learningRateFactor": 0.5, "warmupSteps": 5, "batchSize": 3}
    course = Course.of(recipe(0, 0.0, {"steps": 10}, second))
    assert factors(course) == pytest.approx([1.0] * 10 + [0.1, 0.2, 0.3, 0.4, 0.5] + [0.5] * 5)
    assert [course.index_at(step) for step in (0, 9, 10, 19, 20)] == [0, 0, 1, 1, 1]
    assert [course.samples_at(step) for step in (0, 9, 10, 12, 20, 25)] == [0, 36, 40, 46, 70, 70]


@st.composite
def courses(draw: st.DrawFn) -> tuple[Course, list[Decision]]:
    """A planned recipe of one to three stages, and decisions that each rank may be told."""
    number = draw(st.integers(1, 3))
    share = draw(st.floats(0.05, 0.9))
    planned = recipe(0, share, *({"share": 1 / number},) * number)
    decisions: list[Decision] = []
    step = draw(st.integers(1, 40))
    for _ in range(draw(st.integers(1, 5))):
        index = Course.of(planned, decisions).index_at(step) if decisions else 0
        lengths = draw(st.lists(st.integers(1, 200), min_size=number, max_size=number))
        ends = list(decisions[-1].stage_ends[:index]) if decisions else []
        for length in lengths[index:]:
            ends.append((ends[-1] if len(ends) > index else step) + length)
        begin = ends[-1] * (1 - share)
        decisions.append(
            Decision(step=step, reason="test", stage_ends=tuple(ends), cooldown_begin=begin)
        )
        step = draw(st.integers(step, ends[-1] - 1))
    return Course.of(planned, decisions), decisions


@given(courses())
def test_decisions_bend_the_cooldown_and_never_break_it(
    case: tuple[Course, list[Decision]],
) -> None:
    """Progress only rises, reaches 1 exactly behind the last step, and does not jump where it was
    decided anew; each decision leaves what came before it as it was."""
    course, decisions = case
    total = course.total_steps
    progress = [course.progress(step) for step in range(total + 2)]
    assert progress == sorted(progress)
    assert progress[total] < 1.0 == progress[total + 1]
    assert course.factor(total - 1) > 0.0 == course.factor(total)
    for number, decision in enumerate(decisions[1:], start=1):
        before = Course.of(course.recipe, decisions[:number])
        after = before.after(decision)
        assert after.progress(decision.step) == pytest.approx(before.progress(decision.step))
        for step in range(decision.step):
            assert after.factor(step) == pytest.approx(before.factor(step))
            assert after.index_at(step) == before.index_at(step)


def test_before_anything_is_decided_the_first_stage_is_open() -> None:
    """At the full rate, and nobody can say when it ends."""
    course = Course.of(recipe(0, 0.2, {"share": 0.5}, {"share": 0.5}))
    assert course.is_open
    assert course.known_steps is None
    assert (course.index_at(10**6), course.factor(10**6)) == (0, 1.0)
