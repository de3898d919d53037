"""What a run will come to before it is started: steps, samples, hours, money, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from daybreak_trainer.plan.decide import decide
from daybreak_trainer.plan.limits import MAX_COST, SECONDS_PER_HOUR, Limits, Spent
from daybreak_trainer.plan.memory import checkpoint_bytes
from daybreak_trainer.recipe import Recipe, RecipeError
from daybreak_trainer.schedule.course import Course

_CLOCK = "spec.deadline"


@dataclass(frozen=True)
class StageForecast:
    resolution: int
    steps: int
    samples: int
    images_per_second: float
    seconds: float
    gpu_hours: float
    cost: float | None


@dataclass(frozen=True)
class Forecast:
    stages: tuple[StageForecast, ...]
    cooldown_begin: float | None
    storage_bytes: int
    """Of checkpoints: those that are kept, and one that is being written."""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def forecast(
    recipe: Recipe,
    limits: Limits,
    images_per_second: Sequence[float],
    devices: int,
    *,
    now: float,
    parameters: int,
    keep_last: int,
    ending_seconds: float = 600.0,
) -> Forecast:
    """`ending_seconds` are kept for start-up, the last commit, export and evaluation.

    Raises:
        RecipeError: it cannot fit; the message says what would.
    """
    seconds = limits.seconds(Spent(0.0, 0.0, now), devices)
    course = Course.of(recipe)
    if course.is_open:
        if seconds is None or seconds <= ending_seconds:
            given = "nothing" if seconds is None else f"{seconds / SECONDS_PER_HOUR:.2f} h"
            raise RecipeError(
                f"recipe.stages have shares and the run has {given}, of which "
                f"{ending_seconds / SECONDS_PER_HOUR:.2f} h are for start and end; raise "
                "spec.budget or spec.deadline"
            )
        course = course.after(
            decide(course, 0, seconds - ending_seconds, images_per_second, "plan")
        )
    stages = tuple(
        _stage(course, index, speed, devices, limits.budget.gpu_hour_price)
        for index, speed in enumerate(images_per_second)
    )
    training = sum(stage.seconds for stage in stages)
    if seconds is not None and training + ending_seconds > seconds * (1 + 1e-6):
        raise RecipeError(_refusal(limits, devices, training, ending_seconds, now))
    if empty := [index for index, stage in enumerate(stages) if not stage.steps]:
        raise RecipeError(
            f"recipe.stages[{empty[0]}] gets no time for a single step; raise spec.budget, or "
            "lower its batchSize"
        )
    return Forecast(
        stages,
        course.cooldown[0][0] if course.cooldown else None,
        checkpoint_bytes(recipe, parameters) * (keep_last + 1),
    )


def _stage(
    course: Course, index: int, speed: float, devices: int, price: float | None
) -> StageForecast:
    stage = course.recipe.stages[index]
    samples = course.steps(index) * stage.batch_size
    seconds = samples / speed
    hours = seconds * devices / SECONDS_PER_HOUR
    return StageForecast(
        stage.resolution,
        course.steps(index),
        samples,
        speed,
        seconds,
        hours,
        None if price is None else hours * price,
    )


def _refusal(limits: Limits, devices: int, training: float, ending: float, now: float) -> str:
    """Fixed steps that do not fit, and each change that alone would do. Twice as many devices train
    in half the time, and start and end as slowly as before: where money is short they cost more."""
    left = limits.left(Spent(0.0, 0.0, now), devices)
    tightest = min(left, key=lambda field: left[field])
    needed, work = training + ending, training * devices
    remedies = []
    if (percent := floor(100 * (left[tightest] - ending) / training)) > 0:
        remedies.append(f"give stages {percent} % of their steps")
    remedies.append("give them shares in place of steps")
    money = left.get(MAX_COST)
    if money is None or money >= needed:
        affordable = float("inf") if money is None else money * devices
        time = left[tightest] - ending
        more = ceil(work / time * (1 - 1e-9)) if time > 0 else 0
        if more and work + more * ending <= affordable:
            remedies.append(f"take {more} devices")
    short = {field: needed - has for field, has in left.items() if has < needed}
    price = limits.budget.gpu_hour_price or 0.0
    remedies.append(" and ".join(_raised(f, short[f], needed, devices, price) for f in short))
    return (
        f"recipe.stages need {needed / SECONDS_PER_HOUR:.2f} h on {devices} devices, start and end "
        f"included, and {tightest} allows {max(left[tightest], 0.0) / SECONDS_PER_HOUR:.2f} h: "
        + ", or ".join(remedies)
    )


def _raised(field: str, missing: float, needed: float, devices: int, price: float) -> str:
    if field == MAX_COST:
        cost = needed / SECONDS_PER_HOUR * devices * price
        return f"raise {field} to {ceil(100 * cost) / 100:.2f}"
    if field == _CLOCK:
        return f"put {field} off by {ceil(missing / 60)} minutes"
    return f"raise {field} to {ceil(needed / 60)}m"


def short_warm_ups(recipe: Recipe, found: Forecast) -> list[str]:
    """Stages with shares may get fewer steps than it takes a learning rate to rise."""
    told, total = [], sum(stage.steps for stage in found.stages)
    if recipe.schedule.warmup_steps >= total:
        told.append(
            f"recipe.schedule.warmupSteps ({recipe.schedule.warmup_steps}) is not below the run's "
            f"{total} steps: its learning rate never gets to the top; lower it"
        )
    for number, (stage, planned) in enumerate(zip(recipe.stages, found.stages, strict=True)):
        if stage.warmup_steps and stage.warmup_steps >= planned.steps:
            told.append(
                f"recipe.stages[{number}].warmupSteps ({stage.warmup_steps}) is not below the "
                f"{planned.steps} steps that its share comes to; lower it"
            )
    return told
