"""How far the run is and how well it learns. Rank 0 sets these; they are right after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

from daybreak_trainer.contract import WorkerPhase
from daybreak_trainer.telemetry.metrics.family import run_gauge

_PHASES: tuple[WorkerPhase, ...] = (
    "Starting",
    "Training",
    "Checkpointing",
    "Evaluating",
    "Exporting",
    "Done",
    "Stopping",
)


class ProgressMetrics:
    def __init__(self) -> None:
        self._step = run_gauge("step", "Optimizer steps done in the run.")
        self._total_steps = run_gauge("total_steps", "Optimizer steps of the whole run.")
        self._samples = run_gauge("samples", "Samples trained on in the run.")
        self._loss = run_gauge("loss", "Mean loss of the last global batch.")
        self._loss_part = run_gauge(
            "loss_part", "A part of the loss before its weight; NaN while it is off.", "part"
        )
        self._parts: set[str] = set()
        self._gradient_norm = run_gauge("gradient_norm", "Global gradient norm before clipping.")
        self._learning_rate = run_gauge("learning_rate", "Learning rate of the last step.")
        self._speed = run_gauge("images_per_second", "Images trained a second, over all ranks.")
        self._training = run_gauge("training_seconds", "Time in training steps over the whole run.")
        self._stage = run_gauge("stage_index", "Current stage of the recipe, from 1.")
        self._resolution = run_gauge("stage_resolution_pixels", "Side of the stage's images.")
        self._phase = run_gauge("phase", "1 for what the worker does now.", "phase")
        self._alignment = run_gauge("alignment_ratio", "Share of images that show their prompt.")
        self._by_tag = run_gauge("alignment_tag_ratio", "The same for each tag.", "tag")

    def run(
        self,
        *,
        step: int,
        total_steps: int | None,
        samples: int,
        training_seconds: float,
        loss: float | None,
        images_per_second: float | None,
        gradient_norm: float | None,
        learning_rate: float | None,
    ) -> None:
        self._step.set(step)
        self._samples.set(samples)
        self._training.set(training_seconds)
        for gauge, value in (
            (self._total_steps, total_steps),
            (self._loss, loss),
            (self._speed, images_per_second),
            (self._gradient_norm, gradient_norm),
            (self._learning_rate, learning_rate),
        ):
            if value is not None:
                gauge.set(value)

    def loss_parts(self, parts: Mapping[str, float]) -> None:
        self._parts |= set(parts)
        for name in self._parts:
            self._loss_part.labels(name).set(parts.get(name, nan))

    def stage(self, index: int, resolution: int) -> None:
        self._stage.set(index)
        self._resolution.set(resolution)

    def phase(self, phase: WorkerPhase) -> None:
        for name in _PHASES:
            self._phase.labels(name).set(name == phase)

    def evaluation(self, alignment: float, by_tag: dict[str, float]) -> None:
        self._alignment.set(alignment)
        for tag, value in by_tag.items():
            self._by_tag.labels(tag).set(value)
