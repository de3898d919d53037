"""What a run says about itself while it trains: rank 0 keeps `contract.Progress` up to date."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime, timedelta

from daybreak_trainer.contract import (
    CheckpointRef,
    Evaluation,
    Progress,
    StageProgress,
    WorkerPhase,
)
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.rank import Standing
from daybreak_trainer.recipe.model import Stage
from daybreak_trainer.settings import Settings
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.progress import ProgressFile

_WRITE_EVERY_SECONDS = 0.5
_SPEED_WINDOW_STEPS = 50


class ProgressReporter:
    """A no-op on every rank but the first."""

    def __init__(self, settings: Settings, rank: Rank, standing: Standing) -> None:
        self._recipe, self._standing = settings.recipe, standing
        self._file = ProgressFile(settings.work_dir) if rank.is_first else None
        self._written = 0.0
        self._metrics = train_metrics()
        self._finished: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW_STEPS)
        self.gradient_norm: float | None = None
        self.learning_rate: float | None = None
        now = _rfc3339(datetime.now(UTC))
        self._progress = Progress(
            run_uid=settings.run.uid,
            attempt=settings.run.attempt,
            phase="Starting",
            total_steps=settings.recipe.total_steps,
            started_at=now,
            updated_at=now,
        )
        self._set(at_once=True)

    def phase(self, phase: WorkerPhase, message: str = "") -> None:
        if phase == "Training":
            self._finished.clear()
        self._metrics.phase(phase)
        self._set(at_once=True, phase=phase, message=message)

    def resumed(
        self, checkpoint: CheckpointRef | None, skipped: list[str], training_seconds: float
    ) -> None:
        self._set(
            at_once=True,
            resumed_from=checkpoint,
            checkpoint=checkpoint,
            skipped_checkpoints=tuple(skipped),
            step=self._standing.step,
            samples=self._standing.samples,
            training_seconds=round(training_seconds, 3),
        )

    def step(self, agreed: Agreed, stage_index: int, stage: Stage, training_seconds: float) -> None:
        first = self._progress.first_step_at is None
        now = datetime.now(UTC)
        self._finished.append((time.monotonic(), self._standing.samples))
        speed = self._images_per_second()
        self._metrics.stage(index=stage_index + 1, resolution=stage.resolution)
        if self._file is not None:
            self._metrics.run(
                step=agreed.step,
                total_steps=self._recipe.total_steps,
                samples=self._standing.samples,
                training_seconds=training_seconds,
                loss=agreed.loss,
                images_per_second=speed,
                gradient_norm=self.gradient_norm,
                learning_rate=self.learning_rate,
            )
        left = self._recipe.samples_at(self._recipe.total_steps) - self._standing.samples
        self._set(
            at_once=first,
            step=agreed.step,
            samples=self._standing.samples,
            loss=agreed.loss,
            images_per_second=speed,
            stage=StageProgress(
                name=f"{stage.resolution}px", index=stage_index + 1, of=len(self._recipe.stages)
            ),
            first_step_at=_rfc3339(now) if first else self._progress.first_step_at,
            estimated_completion_time=(
                _rfc3339(now + timedelta(seconds=left / speed)) if speed else None
            ),
            training_seconds=round(training_seconds, 3),
        )

    def local_step(self, images: int, seconds: float) -> None:
        """One finished step of this rank, `images` its own."""
        self._metrics.step(images=images, seconds=seconds)

    def committed(self, checkpoint: CheckpointRef, seconds: float) -> None:
        self._metrics.checkpoint(step=checkpoint.step, seconds=seconds, unix_time=time.time())
        self._set(at_once=True, checkpoint=checkpoint)

    def evaluated(self, evaluation: Evaluation) -> None:
        self._metrics.evaluation(evaluation.alignment, evaluation.alignment_by_tag)
        self._set(at_once=True, evaluation=evaluation)

    def exported(self, url: str) -> None:
        self._set(at_once=True, export_url=url)

    def _images_per_second(self) -> float | None:
        if len(self._finished) < 2:
            return None
        (start, before), (end, after) = self._finished[0], self._finished[-1]
        return (after - before) / (end - start) if end > start else None

    def _set(self, at_once: bool, **changes: object) -> None:
        now = datetime.now(UTC)
        self._progress = self._progress.model_copy(update={**changes, "updated_at": _rfc3339(now)})
        self._standing.progress = self._progress
        if self._file is None:
            return
        if at_once or time.monotonic() - self._written >= _WRITE_EVERY_SECONDS:
            self._file.write(self._progress)
            self._written = time.monotonic()


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
