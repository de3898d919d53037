"""What a worker measures, for Prometheus. `docs/metrics.md` lists it all.

prometheus-client runs in multiprocess mode: ranks write to files under `PROMETHEUS_MULTIPROC_DIR`,
and the launcher serves them, so they can be read while the ranks are busy or dead. That variable
must be set before this module is imported. Run totals are gauges, right again after a resume;
counters count this pod's own work.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from daybreak_trainer.contract import Validation, WorkerPhase
from daybreak_trainer.telemetry.metrics.checkpoints import CheckpointMetrics
from daybreak_trainer.telemetry.metrics.evaluation import EvaluationMetrics
from daybreak_trainer.telemetry.metrics.goodput import GoodputMetrics
from daybreak_trainer.telemetry.metrics.health import HealthMetrics
from daybreak_trainer.telemetry.metrics.loader import LoaderMetrics
from daybreak_trainer.telemetry.metrics.plan import PlanMetrics
from daybreak_trainer.telemetry.metrics.progress import ProgressMetrics
from daybreak_trainer.telemetry.metrics.speed import SpeedMetrics


class TrainMetrics:
    """Made once a process; rank 0 sets the run's gauges, every rank its counters."""

    def __init__(self) -> None:
        self.progress = ProgressMetrics()
        self.speed = SpeedMetrics()
        self.checkpoints = CheckpointMetrics()
        self.loader = LoaderMetrics()
        self.health = HealthMetrics()
        self.goodput = GoodputMetrics()
        self.evaluations = EvaluationMetrics()
        self.plan = PlanMetrics()

    def run(
        self,
        *,
        step: int,
        total_steps: int | None,
        samples: int,
        training_seconds: float,
        loss: float | None = None,
        images_per_second: float | None = None,
        gradient_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """The run's totals, on rank 0."""
        self.progress.run(
            step=step,
            total_steps=total_steps,
            samples=samples,
            training_seconds=training_seconds,
            loss=loss,
            images_per_second=images_per_second,
            gradient_norm=gradient_norm,
            learning_rate=learning_rate,
        )

    def step(self, *, images: int, seconds: float) -> None:
        """One finished step of this rank; `images` are its own."""
        self.speed.step(images=images, seconds=seconds)

    def stage(self, *, index: int, resolution: int) -> None:
        """`index` counts from 1; `resolution` in pixels."""
        self.progress.stage(index, resolution)

    def phase(self, phase: WorkerPhase) -> None:
        self.progress.phase(phase)

    def evaluation(self, alignment: float, by_tag: dict[str, float]) -> None:
        self.progress.evaluation(alignment, by_tag)

    def validated(self, found: Validation) -> None:
        self.evaluations.validated(found)
        if found.alignment is not None:
            self.evaluation(found.alignment, found.alignment_by_tag)


@cache
def train_metrics() -> TrainMetrics:
    """This process's metrics."""
    return TrainMetrics()


def exposition() -> bytes:
    """All ranks' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
