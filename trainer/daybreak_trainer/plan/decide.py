"""Lays out what is left of a run whose stages have shares of its training time.

Work that is done counts with the time it took, and where that was on four times as many devices,
with what it would have taken on those of today. So a share is one of the work, a run that is
resized in the middle keeps its proportions, and what was lost to interruptions is missed by all
stages alike.

One slow measurement, of a cold cache say, may move plans, which the next one moves back. What
cannot be moved back, the end of a stage and the cooldown's begin, takes two of them in a row.

Decisions are made after the first steps of a stage and of an attempt, and then at distances that
shrink with the time that is left, so an error of the speed shrinks with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision

MEASURED_STEPS = 20
"""Of a stage, or of an attempt, before its speed is believed."""
WARM_STEPS = 5
"""Of them, those that are not measured: caches fill, clocks rise."""
_PERIOD = 0.02
"""Of the whole time, between two decisions; and at the end, this part of what is left:"""
_OF_THE_REST = 1 / 3
_LEAST_STEPS = 2
_SPARE_STEPS = 4
"""Of the slowest stage, left over: the last steps may take longer than those before them."""


def due(course: Course, next_step: int, step: int, began: int) -> str | None:
    """Why to decide when `step` steps are done, if that is to be; `next_step` is the last
    decision's, and `began` the step at which this attempt began. A function of what all ranks
    know."""
    begin = course.begin(course.index_at(step))
    since = max(begin, began)
    if step - since < MEASURED_STEPS:
        return None
    if step - since == MEASURED_STEPS:
        return "stage" if begin >= began else "resumed"
    return "periodic" if step >= next_step else None


def next_after(step: int, whole: float, left: float, a_step: float) -> int:
    """Step after which to decide again, with so many seconds in the whole run and left of it."""
    period = min(_PERIOD * whole, _OF_THE_REST * left)
    return step + max(_LEAST_STEPS, floor(period / a_step))


@dataclass(frozen=True)
class Window:
    """What was measured since the last decision, or since a stage or an attempt began."""

    images_per_second: float
    """Over all ranks, in the stage that the next step belongs to."""
    ranks: int


def replan(
    course: Course,
    decisions: Sequence[Decision],
    step: int,
    seconds: float,
    window: Window,
    work: Sequence[float],
    reason: str,
) -> Decision:
    """The course from `step` on, when there are `seconds` to train. A stage that was not measured
    yet is held to be as much slower as it has more `work` (FLOPs) an image."""

    def at(measured: float) -> Decision:
        speeds = _believed(
            course, decisions, step, replace(window, images_per_second=measured), work
        )
        done = _done(course, decisions, step, speeds, window.ranks)
        return decide(course, step, seconds, speeds, reason, done)

    found = at(window.images_per_second)
    if decisions and _cannot_be_moved_back(course, found):
        before = expected(course, decisions[-1], step, window.ranks)
        if before is not None and before > window.images_per_second:
            # Looked at again as soon as it can be told whether it stays so slow.
            again = min(found.next_step, step + MEASURED_STEPS)
            found = at(before).model_copy(update={"next_step": again})
    return found.model_copy(update={"measured": window.images_per_second, "ranks": window.ranks})


def _cannot_be_moved_back(course: Course, found: Decision) -> bool:
    """A stage ends, or the cooldown begins, before it is decided again."""
    current = course.index_at(found.step)
    ends = current + 1 < len(course.ends) and found.stage_ends[current] <= found.next_step
    cools = course.recipe.schedule.cooldown_share > 0 and course.progress(found.step) == 0.0
    return ends or (cools and found.cooldown_begin <= found.next_step)


def expected(course: Course, last: Decision, step: int, ranks: int) -> float | None:
    """Images/s on so many ranks, by the measurement before, or what was held of a stage that had
    none; None where it had no speeds."""
    if not last.images_per_second:
        return None
    stage = course.index_at(step)
    same = course.index_at(last.step) == stage
    speed = last.measured if same and last.measured else last.images_per_second[stage]
    return speed * _resized(last, ranks)


def average(
    course: Course, since: int, step: int, seconds: float, work: Sequence[float]
) -> float | None:
    """Images/s in the stage of the next step, by the `seconds` that all steps before it took, from
    step `since` on; None where there was none."""
    done = sum(
        max(0, min(step, end) - max(since, course.begin(index))) * stage.batch_size * work[index]
        for index, (stage, end) in enumerate(zip(course.recipe.stages, course.ends, strict=True))
    )
    return done / seconds / work[course.index_at(step)] if done and seconds > 0 else None


def _resized(last: Decision, ranks: int) -> float:
    return ranks / last.ranks if last.ranks else 1.0


def _believed(
    course: Course,
    decisions: Sequence[Decision],
    step: int,
    window: Window,
    work: Sequence[float],
) -> tuple[float, ...]:
    """Images/s of every stage after this measurement."""
    stage, measured = course.index_at(step), window.images_per_second
    if not decisions or not decisions[-1].images_per_second:
        return tuple(measured * work[stage] / other for other in work)
    last = decisions[-1]
    ratio, resized = measured / last.images_per_second[stage], _resized(last, window.ranks)
    return tuple(
        measured if number == stage else speed * (ratio if number > stage else resized)
        for number, speed in enumerate(last.images_per_second)
    )


def _done(
    course: Course,
    decisions: Sequence[Decision],
    step: int,
    speeds: Sequence[float],
    ranks: int,
) -> tuple[float, ...]:
    """Seconds that each stage was trained: what the last decision knows, and since then."""
    known, since, resized = (0.0,) * len(speeds), 0, 1.0
    if decisions and decisions[-1].done_seconds:
        last = decisions[-1]
        known, since, resized = last.done_seconds, last.step, _resized(last, ranks)
    return tuple(
        seconds / resized
        + max(0, min(step, end) - max(since, course.begin(index))) * stage.batch_size / speed
        for index, (stage, end, seconds, speed) in enumerate(
            zip(course.recipe.stages, course.ends, known, speeds, strict=True)
        )
    )


def decide(
    course: Course,
    step: int,
    seconds: float,
    images_per_second: Sequence[float],
    reason: str,
    done: Sequence[float] = (),
) -> Decision:
    """The course from `step` on, when there are `seconds` to train, stages have these speeds and
    were trained for `done` seconds. The cooldown gets its share of all the time, and what is left
    where that is less; one that has begun goes on to the new end."""
    recipe, current = course.recipe, course.index_at(step)
    a_step = [
        stage.batch_size / speed
        for stage, speed in zip(recipe.stages, images_per_second, strict=True)
    ]
    left = max(0.0, seconds - _SPARE_STEPS * max(a_step))
    done = done or (0.0,) * len(a_step)
    whole = sum(done) + left
    ends = _ends(course, step, _wanted(course, current, done, whole, left), a_step)
    begin = _seconds_before_end(ends, step, a_step, recipe.schedule.cooldown_share * whole)
    return Decision(
        step=step,
        reason=reason,
        stage_ends=tuple(ends),
        cooldown_begin=begin,
        next_step=next_after(step, whole, left, a_step[current]),
        images_per_second=tuple(images_per_second),
        done_seconds=tuple(done),
    )


def _wanted(
    course: Course, current: int, done: Sequence[float], whole: float, left: float
) -> list[float]:
    """Seconds of each stage from now on; together what is left."""
    wanted = [
        max(0.0, (stage.share or 0.0) * whole - done[index]) if index >= current else 0.0
        for index, stage in enumerate(course.recipe.stages)
    ]
    if not (total := sum(wanted)):
        wanted[-1], total = 1.0, 1.0
    return [left * seconds / total for seconds in wanted]


def _ends(course: Course, step: int, wanted: Sequence[float], a_step: Sequence[float]) -> list[int]:
    """In whole steps; what a stage cannot use of a step's time goes to the next one."""
    current, at, spare = course.index_at(step), step, 0.0
    ends = list(course.ends[:current])
    for seconds, each in zip(wanted[current:], a_step[current:], strict=True):
        steps = floor((seconds + spare) / each)
        spare += seconds - steps * each
        at += steps
        ends.append(at)
    return ends


def _seconds_before_end(
    ends: Sequence[int], step: int, a_step: Sequence[float], seconds: float
) -> float:
    """The step that is so many seconds before the last, and not before `step`."""
    for index in reversed(range(len(ends))):
        begin = max(step, ends[index - 1] if index else 0)
        length = max(0, ends[index] - begin) * a_step[index]
        if seconds <= length:
            return ends[index] - seconds / a_step[index]
        seconds -= length
    return float(step)
