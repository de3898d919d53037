"""What a run says about itself while it trains: rank 0 keeps `contract.Progress` up to date."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from daybreak_trainer.checkpoint.saves import Outcome
from daybreak_trainer.contract import (
    CheckpointRef,
    EarlyEnd,
    Evaluation,
    Progress,
    SlowRank,
    StageProgress,
    Validation,
    WorkerPhase,
    rfc3339,
)
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.rank import Standing
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.progress import ProgressFile
from daybreak_trainer.telemetry.throughput import Throughput

_WRITE_EVERY_SECONDS = 0.5


class ProgressReporter:
    """A no-op on every rank but the first."""

    def __init__(self, settings: Settings, rank: Rank, standing: Standing) -> None:
        self._standing = standing
        self._file = ProgressFile(settings.work_dir) if rank.is_first else None
        self._written = 0.0
        self._last_step: int | None = None
        self._metrics = train_metrics()
        now = rfc3339(datetime.now(UTC))
        self._progress = Progress(
            run_uid=settings.run.uid,
            attempt=settings.run.attempt,
            phase="Starting",
            total_steps=Course.of(settings.recipe).known_steps,
            started_at=now,
            updated_at=now,
        )
        self.phase("Starting")

    def phase(self, phase: WorkerPhase, message: str = "") -> None:
        if self._file is not None:
            self._metrics.phase(phase)
        self._set(at_once=True, phase=phase, message=message)

    def resumed(
        self,
        origin: CheckpointRef | None,
        checkpoint: CheckpointRef | None,
        skipped: list[str],
        state: RunState,
    ) -> None:
        """Training goes on from `origin`, or begins. `checkpoint` is the same, unless it is another
        run's."""
        if self._file is not None:
            self._metrics.checkpoints.holds(state.training_seconds)
        if checkpoint is not None and self._file is not None:
            made = datetime.fromisoformat(checkpoint.time).timestamp()
            self._metrics.checkpoints.resumed(step=checkpoint.step, unix_time=made)
        self._set(
            at_once=True,
            resumed_from=origin,
            checkpoint=checkpoint,
            skipped_checkpoints=tuple(skipped),
            step=state.step,
            samples=state.samples,
            training_seconds=round(state.training_seconds, 3),
            restarts=dict(state.restarts),
        )

    def stage(self, index: int, course: Course) -> None:
        """The run enters a stage, or goes on in it."""
        stage = course.recipe.stages[index]
        if self._file is not None:
            self._metrics.stage(index=index + 1, resolution=stage.resolution)
        name = StageProgress(
            name=f"{stage.resolution}px", index=index + 1, of=len(course.recipe.stages)
        )
        self._set(at_once=True, stage=name, total_steps=course.known_steps)

    def planned(self, course: Course) -> None:
        """The run's length was decided anew."""
        if self._file is not None:
            self._metrics.plan.decided(course)
        self._set(at_once=True, total_steps=course.known_steps)

    def reaches(self, last_step: int, ends_early: EarlyEnd | None) -> None:
        """Of the recipe's steps, so many fit into the run's limits; what is told of it."""
        self._last_step = last_step
        if self._file is not None:
            self._metrics.plan.reaches(last_step)
        self._set(at_once=True, ends_early=ends_early)

    def step(
        self,
        agreed: Agreed,
        state: RunState,
        course: Course,
        speed: Throughput | None,
        ledger: Mapping[str, float],
    ) -> None:
        """What all ranks agreed on about a finished step, on rank 0."""
        if self._file is None:
            return
        first = self._progress.first_step_at is None
        now = datetime.now(UTC)
        images_per_second = speed.images_per_second if speed is not None else None
        self._metrics.run(
            step=agreed.step,
            total_steps=course.known_steps,
            samples=state.samples,
            training_seconds=state.training_seconds,
            loss=agreed.loss,
            images_per_second=images_per_second,
            gradient_norm=agreed.gradient_norm,
            learning_rate=course.learning_rate(agreed.step - 1),
        )
        self._metrics.progress.loss_parts(agreed.parts)
        self._metrics.goodput.ledger(ledger)
        if speed is not None:
            self._metrics.speed.throughput(speed)
        self._set(
            at_once=first,
            step=agreed.step,
            samples=self._standing.samples,
            loss=agreed.loss,
            images_per_second=images_per_second,
            mfu=speed.mfu if speed is not None else None,
            total_steps=course.known_steps,
            first_step_at=rfc3339(now) if first else self._progress.first_step_at,
            estimated_completion_time=_completion(
                now, agreed.step, images_per_second, course, self._last_step
            ),
            training_seconds=round(state.training_seconds, 3),
            ledger=_rounded(ledger),
        )

    def slow_rank(self, found: SlowRank | None) -> None:
        """A rank holds up the others, or none does any more."""
        if found != self._progress.straggler:
            self._set(at_once=True, straggler=found)

    def committed(self, checkpoint: CheckpointRef, outcome: Outcome) -> None:
        """A save became a commit."""
        if self._file is not None:
            self._metrics.checkpoints.committed(
                step=checkpoint.step,
                unix_time=time.time(),
                seconds=outcome.staging_seconds + outcome.write_seconds,
                blocked_seconds=outcome.blocked_seconds,
                write_seconds=outcome.write_seconds,
                size_bytes=outcome.commit.size if outcome.commit is not None else None,
            )
            if outcome.commit is not None:
                self._metrics.checkpoints.holds(outcome.commit.training_seconds)
        self._set(at_once=True, checkpoint=checkpoint)

    def evaluated(self, evaluation: Evaluation) -> None:
        self._metrics.evaluation(evaluation.alignment, evaluation.alignment_by_tag)
        self._set(at_once=True, evaluation=evaluation)

    def validated(self, found: Validation) -> None:
        """An evaluation during training ended, or a resume knows of one."""
        if self._file is not None:
            self._metrics.validated(found)
        self._set(at_once=True, validation=found)

    @property
    def validation(self) -> Validation | None:
        """The last one; None where there was none."""
        found = self._progress.validation
        return found if found is not None and (found.loss is not None or found.metrics) else None

    def done(self, ledger: Mapping[str, float]) -> None:
        """Nothing is left to do."""
        if self._file is not None:
            self._metrics.goodput.ledger(ledger)
        self.phase("Done")
        self._set(at_once=True, ledger=_rounded(ledger))

    def exported(self, url: str) -> None:
        self._set(at_once=True, export_url=url)

    def _set(self, at_once: bool, **changes: object) -> None:
        now = datetime.now(UTC)
        self._progress = self._progress.model_copy(update={**changes, "updated_at": rfc3339(now)})
        self._standing.progress = self._progress
        if self._file is None:
            return
        if at_once or time.monotonic() - self._written >= _WRITE_EVERY_SECONDS:
            self._file.write(self._progress)
            self._written = time.monotonic()


def _completion(
    now: datetime,
    step: int,
    images_per_second: float | None,
    course: Course,
    last_step: int | None,
) -> str | None:
    """When the last step will be done at today's speed, or the last that fits."""
    if not images_per_second:
        return None
    left = course.seconds_left(step, images_per_second, last_step)
    return None if left is None else rfc3339(now + timedelta(seconds=left))


def _rounded(ledger: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in ledger.items()}
