"""What a worker measures, for Prometheus. `docs/metrics.md` lists it all.

prometheus-client runs in multiprocess mode: ranks write to files under `PROMETHEUS_MULTIPROC_DIR`,
and the launcher serves them, so they can be read while the ranks are busy or dead. That variable
must be set before this module is imported. Run totals are gauges, right again after a resume;
counters count this pod's own work.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from daybreak_trainer.contract import WorkerPhase

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_PHASES: tuple[WorkerPhase, ...] = (
    "Starting",
    "Training",
    "Checkpointing",
    "Evaluating",
    "Exporting",
    "Done",
    "Stopping",
)


class TrainMetrics:
    """Made once a process; rank 0 sets the run's gauges, every rank its counters."""

    def __init__(self) -> None:
        self._run_step = _gauge("step", "Optimizer steps done in the run.")
        self._total_steps = _gauge("total_steps", "Optimizer steps of the whole recipe.")
        self._samples = _gauge("samples", "Samples trained on in the run.")
        self._loss = _gauge("loss", "Mean loss of the last global batch.")
        self._gradient_norm = _gauge("gradient_norm", "Global gradient norm before clipping.")
        self._learning_rate = _gauge("learning_rate", "Learning rate of the last step.")
        self._speed = _gauge("images_per_second", "Images trained a second, over all ranks.")
        self._training = _gauge("training_seconds", "Time in training steps over the whole run.")
        self._stage = _gauge("stage_index", "Current stage of the recipe, from 1.")
        self._resolution = _gauge("stage_resolution_pixels", "Side of the stage's images.")
        self._phase = _gauge("phase", "1 for what the worker does now.", ("phase",))
        self._checkpoint_step = _gauge("checkpoint_step", "Step of the last commit.")
        self._checkpoint_time = _gauge(
            "checkpoint_timestamp_seconds", "When the last commit was made, Unix time."
        )
        self._alignment = _gauge("alignment_ratio", "Share of images that show their prompt.")
        self._by_tag = _gauge("alignment_tag_ratio", "The same for each tag.", ("tag",))
        self._steps = Counter("daybreak_train_steps", "Steps done by this pod's ranks.")
        self._images = Counter("daybreak_train_images", "Images trained on by this pod's ranks.")
        self._step_seconds = Histogram(
            "daybreak_train_step_seconds", "Duration of an optimizer step.", buckets=_SECONDS
        )
        self._commit_seconds = Histogram(
            "daybreak_train_checkpoint_seconds", "Duration of a commit.", buckets=_SECONDS
        )

    def run(
        self,
        *,
        step: int,
        total_steps: int,
        samples: int,
        training_seconds: float,
        loss: float | None = None,
        images_per_second: float | None = None,
        gradient_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """The run's totals, on rank 0."""
        self._run_step.set(step)
        self._total_steps.set(total_steps)
        self._samples.set(samples)
        self._training.set(training_seconds)
        for gauge, value in (
            (self._loss, loss),
            (self._speed, images_per_second),
            (self._gradient_norm, gradient_norm),
            (self._learning_rate, learning_rate),
        ):
            if value is not None:
                gauge.set(value)

    def step(self, *, images: int, seconds: float) -> None:
        """One finished step of this rank; `images` are its own."""
        self._steps.inc()
        self._images.inc(images)
        self._step_seconds.observe(seconds)

    def stage(self, *, index: int, resolution: int) -> None:
        """`index` counts from 1; `resolution` in pixels."""
        self._stage.set(index)
        self._resolution.set(resolution)

    def phase(self, phase: WorkerPhase) -> None:
        for name in _PHASES:
            self._phase.labels(name).set(name == phase)

    def checkpoint(self, *, step: int, seconds: float, unix_time: float) -> None:
        self._checkpoint_step.set(step)
        self._checkpoint_time.set(unix_time)
        self._commit_seconds.observe(seconds)

    def evaluation(self, alignment: float, by_tag: dict[str, float]) -> None:
        self._alignment.set(alignment)
        for tag, value in by_tag.items():
            self._by_tag.labels(tag).set(value)


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    return Gauge(f"daybreak_train_{name}", text, labels, multiprocess_mode="mostrecent")


@cache
def train_metrics() -> TrainMetrics:
    """This process's metrics."""
    return TrainMetrics()


def exposition() -> bytes:
    """All ranks' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
