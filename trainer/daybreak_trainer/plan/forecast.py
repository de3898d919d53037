"""What a run will come to before it is started: steps, samples, GPU-hours, money and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daybreak_trainer.plan.decide import decide
from daybreak_trainer.plan.limits import SECONDS_PER_HOUR, Limits, Spent
from daybreak_trainer.recipe import Recipe, RecipeError
from daybreak_trainer.schedule.course import Course

STATE_BYTES = 16
"""Of a parameter: weights, two moments and average in fp32. A checkpoint holds as much."""
_GRADIENT_BYTES = 4
_ACTIVATION_BYTES = 34
"""Of a token, a hidden unit and a block, in bf16 and without attention's scores, which are not
kept (arXiv 2205.05198, section 4.1)."""


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
    memory_bytes: int
    """Of a device: its part of the state, and the activations of the largest stage."""

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
    device_batch_size: int | None = None,
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
    needed = sum(stage.seconds for stage in stages) + ending_seconds
    if seconds is not None and needed > seconds * (1 + 1e-6):
        raise RecipeError(
            f"recipe.stages need {needed / SECONDS_PER_HOUR:.2f} h on {devices} devices and the "
            f"run has {seconds / SECONDS_PER_HOUR:.2f} h; give {seconds / needed:.0%} of the "
            f"steps, {-(-devices * needed // seconds):.0f} devices, or stages shares"
        )
    if empty := [index for index, stage in enumerate(stages) if not stage.steps]:
        raise RecipeError(
            f"recipe.stages[{empty[0]}] gets no time for a single step; raise spec.budget, or "
            "lower its batchSize"
        )
    return Forecast(
        stages,
        course.cooldown[0][0] if course.cooldown else None,
        STATE_BYTES * parameters * (keep_last + 1),
        _memory(recipe, parameters, devices, device_batch_size),
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


def _memory(recipe: Recipe, parameters: int, devices: int, device_batch_size: int | None) -> int:
    largest = 0
    for stage in recipe.stages:
        images = -(-stage.batch_size // devices)
        images = min(images, device_batch_size or images)
        largest = max(largest, images * recipe.tokens(stage.resolution, stage.resolution))
    activations = largest * recipe.denoiser.hidden_size * recipe.denoiser.depth * _ACTIVATION_BYTES
    return (STATE_BYTES + _GRADIENT_BYTES) * parameters // devices + activations
