"""How far a run gets inside its limits where the recipe says the steps of each stage.

Such a course never moves: a run that fits is trained to the bit like one without limits. One that
does not is told so as soon as its speed is known, and stops where its time or money is up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from daybreak_trainer.plan.decide import next_after
from daybreak_trainer.plan.limits import MAX_COST
from daybreak_trainer.schedule.course import Course

NOISE = 0.02
"""Of all steps: an end that moves by less is no news."""


@dataclass(frozen=True)
class Room:
    """Seconds that are left to train, on so many devices."""

    devices: int
    by_limit: Mapping[str, float]
    """By the field that says so; may be below zero. At least one."""
    ending: float
    """Of all ends, which more devices do not shorten."""

    @property
    def limit(self) -> str:
        """The tightest."""
        return min(self.by_limit, key=lambda field: self.by_limit[field])

    @property
    def seconds(self) -> float:
        return self.by_limit[self.limit]

    def devices_for(self, needed: float) -> int | None:
        """That do `needed` seconds of training in time, if twice as many are twice as fast. None
        where more do not help: there is time for it, or none at all, or not the money, for they
        cost the same, and at the end more."""
        time = min((left for field, left in self.by_limit.items() if field != MAX_COST), default=0)
        if not 0 < time < needed:
            return None
        devices = ceil(self.devices * needed / time)
        cost = needed + (devices / self.devices - 1) * self.ending
        return devices if cost <= self.by_limit.get(MAX_COST, cost) else None


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
    """That all steps would take from here on; None where more devices do not help, or nothing was
    measured."""

    @property
    def remedy(self) -> str:
        """What helps where not all steps fit."""
        more = f"take {self.devices} devices, " if self.devices is not None else ""
        return f"{more}raise {self.limit} and start another attempt, or train fewer steps"


def is_news(told: int | None, last_step: int, total_steps: int) -> bool:
    """Whether a run that ends at `last_step` of `total_steps` says so, when it last `told` of
    another step."""
    return told is None or abs(last_step - told) > NOISE * total_steps


def reach(
    course: Course,
    step: int,
    room: Room,
    trained_seconds: float,
    images_per_second: Sequence[float],
) -> Reach:
    """From `step` on, when there is so much `room`, `trained_seconds` were trained, and stages have
    these speeds."""
    current, left = course.index_at(step), max(0.0, room.seconds)
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
        room.limit,
        room.devices_for(needed),
    )
