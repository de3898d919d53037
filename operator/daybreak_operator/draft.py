"""The next status of a run and its events, while they are being decided. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from daybreak_operator.api.status import (
    AttemptStatus,
    CheckpointStatus,
    EvaluationStatus,
    ExportStatus,
    Phase,
    ProgressStatus,
    StageStatus,
    TrainingRunStatus,
)
from daybreak_operator.conditions import Truth, conditions
from daybreak_operator.ledger import account
from daybreak_operator.observation import Observation
from daybreak_operator.text import plain
from daybreak_trainer.contract import CheckpointRef, Progress, rfc3339

_EVENT_LENGTH = 1024
_MAX_SKIPPED = 8
"""Checkpoints that get an Event of their own; the worker's log names all."""


@dataclass(frozen=True)
class EventNote:
    """An Event to record once: the same reason and message for one attempt is one Event."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    attempt: int


@dataclass
class Draft:
    """Starts as the status that is stored; what is decided goes into `values`."""

    observation: Observation
    values: dict[str, Any] = field(default_factory=dict)
    events: list[EventNote] = field(default_factory=list)
    reason: str = ""
    message: str = ""
    """Of the condition that is true."""
    truths: dict[str, Truth] = field(default_factory=dict)
    """What is known of conditions that do not follow from the phase: Admitted, Degraded; Suspended,
    while pods that prepare data go."""
    former: AttemptStatus | None = None
    """The stored attempt, with what was seen of it before another took its place."""
    over_at: datetime | None = None
    """When the run was over, where that was before now: its ledger is closed with it."""
    _trainer_seconds: dict[str, float] | None = None

    @property
    def now(self) -> str:
        return rfc3339(self.observation.now, "seconds")

    @property
    def stored(self) -> TrainingRunStatus:
        return self.observation.run.status

    @property
    def heard(self) -> Progress | None:
        """What this attempt's worker 0 said just now. On a network that pods share, who answers at
        its address may be another."""
        told, run = self.observation.progress, self.observation.run
        mine = told and (told.run_uid, told.attempt) == (run.uid, run.status.attempt)
        return told if mine else None

    def get(self, name: str) -> Any:
        """A field of the next status, as it stands."""
        return self.values.get(name, getattr(self.stored, name))

    def settle(self, phase: Phase, reason: str, message: str) -> None:
        self.values["phase"] = phase
        self.reason, self.message = reason, message

    def note(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        said = plain(message, _EVENT_LENGTH)
        self.events.append(EventNote(kind, reason, said, self.get("attempt")))

    def degraded(self, reason: str, message: str) -> None:
        """Something is wrong that does not end the attempt; the first that is said stays."""
        if "Degraded" not in self.truths:
            self.truths["Degraded"] = Truth("True", reason, message)
            self.note("Warning", reason, message)

    def status(self) -> TrainingRunStatus:
        run = self.observation.run
        changed = run.status.model_copy(
            update={**self.values, "observed_generation": run.generation}
        )
        if (progress := changed.progress) is not None and changed.phase != "Running":
            # What was expected of workers at work: of a run without them nobody can say.
            still = progress.model_copy(update={"estimated_completion_time": None})
            changed = changed.model_copy(update={"progress": still})
        if changed != run.status or run.status.ledger is None:
            before = self.former or run.status.current_attempt
            after = changed.current_attempt
            until = self.over_at or self.observation.now
            ledger = account(run, before, after, self._trainer_seconds, until)
            changed = changed.model_copy(update={"ledger": ledger})
        found = conditions(run, changed, self.reason, self.message, self.truths, now=self.now)
        return changed.model_copy(update={"conditions": found})

    # --- what workers say -----------------------------------------------------------------------

    def take(self, progress: Progress | None) -> None:
        """What a worker has said about this run; another run's is passed over."""
        run = self.observation.run
        if progress is None or progress.run_uid != run.uid:
            return
        self._trainer_seconds = dict(progress.ledger) or None
        self.values["progress"] = self._progress(progress)
        self._take_attempt(progress)
        if progress.stage is not None:
            self.values["stage"] = StageStatus(
                name=progress.stage.name, index=progress.stage.index, of=progress.stage.of
            )
        self.take_checkpoint(progress.checkpoint)
        if progress.export_url is not None:
            self.values["export"] = ExportStatus(url=progress.export_url)
        if progress.evaluation is not None:
            told = progress.evaluation
            self.values["evaluation"] = EvaluationStatus(
                benchmark=told.benchmark,
                alignment=f"{told.alignment:.3f}",
                alignment_by_tag={tag: f"{v:.3f}" for tag, v in told.alignment_by_tag.items()},
                judge_accuracy={tag: f"{v:.3f}" for tag, v in told.judge_accuracy.items()},
                images=told.images,
            )
        if (end := progress.ends_early) is not None:
            self.note(
                "Warning",
                "StepsDoNotFit",
                f"{end.limit} ends the run at about step {end.step} of {progress.total_steps}: "
                f"{end.remedy}",
            )
        for sentence in progress.skipped_checkpoints[:_MAX_SKIPPED]:
            self.note("Warning", "CheckpointSkipped", sentence)

    def take_checkpoint(self, told: CheckpointRef | None) -> None:
        """The newest commit that a worker knows of."""
        if told is not None:
            self.values["checkpoint"] = CheckpointStatus(
                step=told.step, time=told.time, url=told.url
            )

    def _progress(self, progress: Progress) -> ProgressStatus:
        before = self.stored.progress
        first = before.first_step_time if before else None
        total = progress.total_steps
        step = max(progress.step, self._step_to_go_on_from(progress))
        # By our clock, for the worker's may be another: it moves when what it says has moved.
        same = before is not None and before.told_time == progress.updated_at
        return ProgressStatus(
            step=step,
            total_steps=total,
            samples=progress.samples,
            percent=100 * step // total if total else 0,
            images_per_second=_figure(progress.images_per_second, ".0f"),
            loss=_figure(progress.loss, ".4g"),
            estimated_completion_time=progress.estimated_completion_time,
            training_seconds=_figure(progress.training_seconds, ".1f"),
            first_step_time=first or progress.first_step_at,
            advanced_time=before.advanced_time if same and before else self.now,
            told_time=progress.updated_at,
        )

    def _step_to_go_on_from(self, progress: Progress) -> int:
        """Of an attempt that still starts: its worker counts from 0 until it has loaded the commit,
        and nobody shall think that what was trained is lost."""
        attempt: AttemptStatus | None = self.get("current_attempt")
        if attempt is None or attempt.number != progress.attempt:
            return 0
        return attempt.start_step if progress.first_step_at is None else 0

    def _take_attempt(self, progress: Progress) -> None:
        attempt: AttemptStatus | None = self.get("current_attempt")
        if attempt is None or attempt.number != progress.attempt:
            return
        if attempt.first_step_time is None and progress.first_step_at is not None:
            # By the worker's clock, which may be wrong.
            told = datetime.fromisoformat(progress.first_step_at)
            since = datetime.fromisoformat(attempt.admitted_time or attempt.created_time)
            at = min(max(told, since), self.observation.now)
            self.values["current_attempt"] = attempt.model_copy(
                update={"first_step_time": rfc3339(at, "seconds")}
            )


def _figure(value: float | None, form: str) -> str | None:
    return format(value, form) if value is not None else None
