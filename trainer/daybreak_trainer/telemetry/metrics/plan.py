"""What a run with a budget has decided about its length, or found out about it. Rank 0 sets these
whenever it does."""

from __future__ import annotations

from daybreak_trainer.schedule.course import Course
from daybreak_trainer.telemetry.metrics.family import run_gauge


class PlanMetrics:
    def __init__(self) -> None:
        self._steps = run_gauge("planned_stage_steps", "Steps of a stage, from 1.", "stage")
        self._speed = run_gauge(
            "planned_images_per_second", "Speed that the plan counts on, by stage.", "stage"
        )
        self._cooldown = run_gauge("planned_cooldown_step", "Step at which the cooldown begins.")
        self._last_step = run_gauge("planned_last_step", "Step at which the run ends.")

    def decided(self, course: Course) -> None:
        for index, speed in enumerate(course.images_per_second):
            self._steps.labels(str(index + 1)).set(course.steps(index))
            self._speed.labels(str(index + 1)).set(speed)
        if course.cooldown:
            self._cooldown.set(course.cooldown[0][0])
        self._last_step.set(course.total_steps)

    def reaches(self, last_step: int) -> None:
        """Stages have steps, of which so many fit into the limits."""
        self._last_step.set(last_step)
