"""How far a run gets inside its limits where the recipe says the steps of each stage.

Such a course never moves: a run that fits is trained to the bit like one without limits. One that
does not is told so as soon as its speed is known, and stops where its time or money is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from daybreak_trainer.plan.decide import next_after
from daybreak_trainer.schedule.course import Course


@dataclass(frozen=True)
class Reach:
    step: int
    """Optimizer steps done when it was found."""
    last_step: int
    """Steps of the whole run that fit."""
    next_step: int
    """Step after which to look again."""
    limit: str
    """The tightest, by its field."""
    devices: int | None = None
    """That all steps would take from here on, if twice as many are twice as fast; None where no
    time is left, or nothing was measured."""


def reach(
    course: Course,
    step: int,
    seconds: float,
    trained_seconds: float,
    images_per_second: Sequence[float],
    devices: int,
    limit: str,
) -> Reach:
    """From `step` on, when there are `seconds` to train on `devices`, `trained_seconds` were, and
    stages have these speeds."""
    current, left = course.index_at(step), max(0.0, seconds)
    last_step, rest, needed = step, left, 0.0
    a_step = [
        stage.batch_size / speed
        for stage, speed in zip(course.recipe.stages, images_per_second, strict=True)
    ]
    for index in range(current, len(a_step)):
        ahead = course.ends[index] - max(step, course.begin(index))
        fitting = min(ahead, floor(rest / a_step[index]))
        needed += ahead * a_step[index]
        last_step += fitting
        rest = rest - fitting * a_step[index] if fitting == ahead else 0.0
    return Reach(
        step,
        last_step,
        next_after(step, trained_seconds + left, left, a_step[current]),
        limit,
        ceil(devices * needed / left) if left else None,
    )
