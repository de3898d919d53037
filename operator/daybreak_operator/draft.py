"""The next status of a run and its events, while they are being decided. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import (
    CheckpointStatus,
    Condition,
    EvaluationStatus,
    ExportStatus,
    ProgressStatus,
    StageStatus,
    TrainingRunStatus,
)
from daybreak_operator.observation import Observation
from daybreak_trainer.contract import CheckpointRef, Progress, rfc3339


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

    def note(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        attempt = self.values.get("attempt", self.observation.run.status.attempt)
        self.events.append(EventNote(kind, reason, message, attempt))

    def status(self) -> TrainingRunStatus:
        run = self.observation.run
        changed = run.status.model_copy(
            update={**self.values, "observed_generation": run.generation}
        )
        return changed.model_copy(update={"conditions": _conditions(run, changed, self)})

    def take(self, progress: Progress | None) -> None:
        """What a worker has said about this run; another run's is passed over."""
        run = self.observation.run
        if progress is None or progress.run_uid != run.uid:
            return
        before = run.status.progress
        first = before.first_step_time if before else None
        total = progress.total_steps
        self.values["progress"] = ProgressStatus(
            step=progress.step,
            total_steps=total,
            samples=progress.samples,
            percent=100 * progress.step // total if total else 0,
            images_per_second=_figure(progress.images_per_second, ".0f"),
            loss=_figure(progress.loss, ".4g"),
            estimated_completion_time=progress.estimated_completion_time,
            training_seconds=_figure(progress.training_seconds, ".1f"),
            first_step_time=first or progress.first_step_at,
        )
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
                f"{end.limit} ends the run at about step {end.step} of {total}: {end.remedy}",
            )
        for sentence in progress.skipped_checkpoints:
            self.note("Warning", "CheckpointSkipped", sentence)

    def take_checkpoint(self, told: CheckpointRef | None) -> None:
        """The newest commit that a worker knows of."""
        if told is not None:
            self.values["checkpoint"] = CheckpointStatus(
                step=told.step, time=told.time, url=told.url
            )


def _figure(value: float | None, form: str) -> str | None:
    return format(value, form) if value is not None else None


def _conditions(run: TrainingRun, status: TrainingRunStatus, draft: Draft) -> tuple[Condition, ...]:
    """Running, Complete, Failed, Suspended; a condition's time moves when its status does."""
    before = {condition.type: condition for condition in run.status.conditions}
    truths = {
        "Running": status.phase == "Running",
        "Complete": status.phase == "Complete",
        "Failed": status.phase == "Failed",
        "Suspended": status.phase == "Suspended",
    }
    reason = draft.reason or status.phase
    conditions = []
    for kind, is_true in truths.items():
        old = before.get(kind)
        value: Literal["True", "False"] = "True" if is_true else "False"
        about = is_true or kind == "Running"
        since = old.last_transition_time if old is not None and old.status == value else None
        conditions.append(
            Condition(
                type=kind,
                status=value,
                reason=reason if about else f"Not{kind}",
                message=draft.message if about else "",
                last_transition_time=since or rfc3339(draft.observation.now, "seconds"),
                observed_generation=run.generation,
            )
        )
    return tuple(conditions)
