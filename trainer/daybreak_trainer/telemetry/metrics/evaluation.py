"""What the averaged weights come to. Rank 0 sets these; a resume restores them."""

from __future__ import annotations

from daybreak_trainer.contract import Validation
from daybreak_trainer.telemetry.metrics.family import run_gauge


class EvaluationMetrics:
    def __init__(self) -> None:
        self._loss = run_gauge(
            "validation_loss",
            "Loss of the averaged weights on held out samples, by range of timesteps; all: of 0-1.",
            "bin",
        )
        self._score = run_gauge(
            "image_score",
            "Distance of drawn images to held out ones, or how well they show their captions.",
            *("metric", "extractor"),
        )
        self._step = run_gauge("evaluation_step", "Step of the last evaluation during training.")
        self._seconds = run_gauge("evaluation_seconds", "Time that it took.")

    def validated(self, found: Validation) -> None:
        self._step.set(found.step)
        self._seconds.set(found.seconds)
        if found.loss is not None:
            self._loss.labels("all").set(found.loss)
        for name, value in found.bins.items():
            self._loss.labels(name).set(value)
        for score in found.metrics:
            self._score.labels(score.name, score.extractor).set(score.value)
