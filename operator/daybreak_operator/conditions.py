"""`status.conditions`: what is true of a run, since when, and why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from daybreak_operator.api.duration import Interval
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import TERMINAL, Condition, TrainingRunStatus
from daybreak_operator.text import plain

Value = Literal["True", "False", "Unknown"]
_OVERDUE = 3
"""Intervals without a commit after which checkpoints are not healthy."""
_SLACK = timedelta(minutes=2)


@dataclass(frozen=True)
class Truth:
    value: Value
    reason: str
    message: str = ""


_NOT_ADMITTED = Truth("False", "NotAdmitted")
_STOPPING = Truth("False", "Stopping", "the workers commit and go")


def conditions(
    run: TrainingRun,
    status: TrainingRunStatus,
    reason: str,
    message: str,
    known: Mapping[str, Truth],
    *,
    now: str,
) -> tuple[Condition, ...]:
    """Admitted, Running, Complete, Failed, Suspended, Degraded, CheckpointHealthy.

    `reason` and `message` are those of the phase; `known` what else was found out. A condition's
    time moves when its value does.
    """
    truths = {
        "Admitted": _admitted(status),
        **_of_phase(status, reason or status.phase, message),
        "Degraded": Truth("False", "AsExpected"),
        "CheckpointHealthy": _checkpoints(run, status, now),
        **known,
    }
    before = {condition.type: condition for condition in run.status.conditions}
    made = []
    for kind, truth in truths.items():
        old = before.get(kind)
        since = old.last_transition_time if old and old.status == truth.value else now
        made.append(
            Condition(
                type=kind,
                status=truth.value,
                reason=truth.reason,
                message=plain(truth.message, 4096),
                last_transition_time=since,
                observed_generation=run.generation,
            )
        )
    return tuple(made)


def _of_phase(status: TrainingRunStatus, reason: str, message: str) -> dict[str, Truth]:
    attempt = status.current_attempt
    stopping = attempt is not None and attempt.released_time is None
    truths: dict[str, Truth] = {}
    for kind in ("Running", "Complete", "Failed", "Suspended"):
        is_true = status.phase == kind
        if kind == "Suspended" and is_true and stopping:
            # Who waits for it wants the last commit, and the nodes.
            truths[kind] = _STOPPING
            continue
        about = is_true or kind == "Running"
        truths[kind] = Truth(
            "True" if is_true else "False",
            reason if about else f"Not{kind}",
            message if about else "",
        )
    return truths


def is_stopping(status: TrainingRunStatus) -> bool:
    """Whether a failed run's workers still held their devices when it was last written, and its
    ledger was left open for that. Versions from before closed it at once, and it stays closed: who
    held devices when, long ago, nobody can say."""
    told = next((c for c in status.conditions if c.type == "Admitted"), None)
    return status.phase == "Failed" and told is not None and told.reason == _STOPPING.reason


def when_stopped(status: TrainingRunStatus) -> tuple[Condition, ...]:
    """The stored conditions, once the workers of a failed run are gone."""
    update = {"reason": _NOT_ADMITTED.reason, "message": _NOT_ADMITTED.message}
    return tuple(
        c.model_copy(update=update) if c.type == "Admitted" else c for c in status.conditions
    )


def _admitted(status: TrainingRunStatus) -> Truth:
    attempt = status.current_attempt
    if attempt is None or attempt.admitted_time is None:
        return _NOT_ADMITTED
    if status.phase == "Failed" and attempt.released_time is None:
        return _STOPPING
    if attempt.ended_time is not None:
        return _NOT_ADMITTED
    return Truth("True", "Admitted", f"every worker of attempt {attempt.number} has a node")


def _checkpoints(run: TrainingRun, status: TrainingRunStatus, now: str) -> Truth:
    """Whether an interruption now would cost about an interval of training, or more."""
    if status.phase in TERMINAL:
        return Truth("True" if status.checkpoint else "Unknown", "RunIsOver")
    attempt, interval = status.current_attempt, Interval.parse(run.spec.checkpoint.interval)
    stepping = attempt is not None and attempt.ended_time is None
    if stepping and attempt and attempt.first_step_time and interval.seconds is not None:
        limit = timedelta(seconds=_OVERDUE * interval.seconds) + _SLACK
        since = attempt.first_step_time
        without = _between(since, now)
        if status.checkpoint is not None:
            # Told by the worker's clock, so compared with what else it told.
            told = status.progress and status.progress.told_time
            by_worker = _between(status.checkpoint.time, told or now)
            if by_worker < without:
                since, without = status.checkpoint.time, by_worker
        if without > limit:
            return Truth(
                "False",
                "CheckpointOverdue",
                f"no commit since {since} with checkpoint.interval "
                f"{run.spec.checkpoint.interval}: the workers' logs say what storage answers",
            )
    if status.checkpoint is None:
        return Truth("Unknown", "NoCheckpointYet")
    return Truth("True", "Committed", f"step {status.checkpoint.step} at {status.checkpoint.url}")


def _between(start: str, end: str) -> timedelta:
    return datetime.fromisoformat(end) - datetime.fromisoformat(start)
