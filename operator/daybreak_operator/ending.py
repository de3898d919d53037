"""How a run ends, and what is left to do when it has. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.policies import FailureClass
from daybreak_operator.api.status import (
    TERMINAL,
    AttemptStatus,
    CheckpointStatus,
    FailureStatus,
    TrainingRunStatus,
    WorkersStatus,
)
from daybreak_operator.conditions import is_stopping, when_stopped
from daybreak_operator.decision import Decision, JobRef, PodRef, concluded
from daybreak_operator.draft import Draft
from daybreak_operator.ledger import account
from daybreak_operator.observation import Observation, PodView
from daybreak_operator.restarts import MAX_FAILURE, end_attempt
from daybreak_operator.text import plain
from daybreak_trainer.contract import rfc3339

_POLL_SECONDS = 5.0
_CLASSES: dict[str, FailureClass] = {
    "InvalidRecipe": "User",
    "PreparationFailed": "Data",
    "DeadlineExceeded": "User",
    "BudgetExhausted": "User",
}
"""Of ends that are no attempt's."""
OLD_PODS_REMAIN = "OldPodsRemain"
"""Reason of a run that waits for the pods of its last attempt."""
_OF_SILENT_NODE, _OF_LIVING_NODE = timedelta(seconds=60), timedelta(minutes=10)
"""How long after the end of its grace period a pod is forced: a node that does not answer will not
end it, and one that does may be busy with unmounting."""


def complete(draft: Draft, at: datetime | None) -> Decision:
    """`at` is when worker 0 was done, by its node's clock; None where nobody knows."""
    progress = draft.get("progress")
    end_attempt(draft, at, expected=True)
    draft.over_at = datetime.fromisoformat(draft.get("current_attempt").ended_time)
    draft.values |= {"completion_time": draft.now, "next_attempt_time": None}
    without_workers(draft)
    if progress is not None and progress.total_steps:
        draft.values["progress"] = progress.model_copy(
            update={"step": progress.total_steps, "percent": 100}
        )
    draft.settle("Complete", "Complete", "training is complete")
    draft.note("Normal", "Complete", "training is complete")
    return concluded(draft)


def fail(draft: Draft, reason: str, message: str) -> Decision:
    attempt = draft.get("current_attempt")
    if attempt is not None and attempt.ended_time is None:
        end_attempt(draft, expected=True)
    release(draft)
    if "last_failure" not in draft.values:
        # No attempt's end, but what ended the run: people look there first.
        draft.values["last_failure"] = FailureStatus(
            reason=reason,
            class_=_CLASSES.get(reason, "Unknown"),
            message=plain(f"{message}{_last_attempt(draft.stored)}", MAX_FAILURE),
            attempt=draft.stored.attempt,
            time=draft.now,
        )
    draft.values |= {"completion_time": draft.now, "next_attempt_time": None}
    without_workers(draft)
    draft.settle("Failed", reason, message)
    draft.note("Warning", reason, message)
    return concluded(draft)


def _last_attempt(stored: TrainingRunStatus) -> str:
    """What the run's last attempt failed of, for one that ends after it."""
    failure = stored.last_failure
    if failure is None or failure.attempt != stored.attempt:
        return ""
    return f"; the last attempt: {failure.reason}: {failure.message}"


def release(draft: Draft, known: str | None = None) -> None:
    """Notes of an attempt that is over until when it held its devices, once none of its pods is at
    work: the last one's end, or `known`."""
    attempt: AttemptStatus | None = draft.get("current_attempt")
    if attempt is None or attempt.ended_time is None or attempt.released_time is not None:
        return
    pods = [pod for pod in draft.observation.pods if not pod.prepares]
    if all(pod.over for pod in pods):
        time = known or rfc3339(_held_until(draft, attempt.ended_time, pods), "seconds")
        draft.former = attempt.model_copy(update={"released_time": time})
        draft.values["current_attempt"] = draft.former


def _held_until(draft: Draft, ended_time: str, pods: Sequence[PodView]) -> datetime:
    """Of pods that are gone nobody can say: they had their grace period at most, for nobody may
    have looked since then. But for those that were waited for, with or without their Job."""
    run, now = draft.observation.run, draft.observation.now
    ended = datetime.fromisoformat(ended_time)
    ends = [p.finished_at for p in pods if p.finished_at and p.attempt == run.status.attempt]
    if ends:
        return min(max(ended, *ends), now)
    if any(condition.reason == OLD_PODS_REMAIN for condition in run.status.conditions):
        return now
    return min(ended + timedelta(seconds=seconds(run.spec.termination_grace_period)), now)


def told_of_suspension(draft: Draft) -> None:
    """An Event, where the run is suspended between two attempts, or before the first."""
    if draft.stored.phase != "Suspended" and draft.stored.start_time is not None:
        text = "spec.suspend is true: pods that are left go, and no others are made"
        draft.note("Normal", "Suspending", text)


def without_workers(draft: Draft) -> None:
    """No Job stands for the run's workers now: an autoscaler that asks for its size learns so."""
    workers: WorkersStatus | None = draft.get("workers")
    if workers is not None and workers.desired:
        none = {"desired": 0, "ready": 0, "summary": f"0/{workers.desired}"}
        draft.values["workers"] = workers.model_copy(update=none)


def after_end(seen: Observation) -> Decision:
    """A run that is over is never begun again: its workers are ended as cleanPodPolicy says, and
    it is deleted when its time to live has passed. A failed run's workers are ended in any case."""
    run, status = seen.run, seen.run.status
    policy, failed = run.spec.clean_pod_policy, status.phase == "Failed"
    since = datetime.fromisoformat(status.completion_time or status.start_time or str(run.created))
    alive = [pod for pod in seen.pods if not pod.over]
    grace = timedelta(seconds=seconds(run.spec.termination_grace_period))
    # The workers of a complete run are about to end by themselves.
    in_time = not failed and seen.now < since + grace
    jobs: tuple[JobRef, ...] = ()
    pods = overdue(seen)
    if failed:
        # One that waits in a queue would get its pods later.
        begun = {pod.attempt for pod in seen.pods}
        idle = (j for j in seen.jobs if j.attempt not in begun and j.failed is None)
        jobs = tuple(JobRef.of(job) for job in idle if job.attempt > 0 and not job.deleting)
        jobs += _still_prepares(seen)
    if policy == "All" and not (alive and in_time):
        jobs = tuple(JobRef.of(job) for job in seen.jobs if not job.deleting)
        if seen.preparation is not None and not seen.preparation.deleting:
            jobs = (*jobs, JobRef.of(seen.preparation))
    elif failed or (policy == "Running" and not in_time):
        pods = (*pods, *(PodRef.of(pod) for pod in alive if not pod.deleting))
    # Workers of a complete run that nobody ends may stay for ever.
    ending = alive and (failed or in_time or policy != "None" or any(p.deleting for p in alive))
    again = _POLL_SECONDS if ending or jobs else None
    ttl = run.spec.ttl_seconds_after_finished
    left = (since + timedelta(seconds=ttl) - seen.now).total_seconds() if ttl is not None else None
    if left is not None and again is None:
        again = max(left, _POLL_SECONDS)
    if failed:
        status = _with_last_commit(seen, status if alive else _settled(seen))
    return Decision(
        status,
        delete_jobs=jobs,
        delete_pods=pods,
        delete_run=left is not None and left <= 0 and not ending,
        again_seconds=again,
    )


def _settled(seen: Observation) -> TrainingRunStatus:
    """A failed run's status, once its last worker is gone: until then it held its devices, and the
    ledger, which was left open when the run failed, goes on to there. Written once.

    The end of the grace period is the latest that counts: nobody may have looked since then.
    """
    status, attempt = seen.run.status, seen.run.status.current_attempt
    if attempt is None or status.completion_time is None or not is_stopping(status):
        return status
    grace = timedelta(seconds=seconds(seen.run.spec.termination_grace_period))
    gone = min(seen.now, datetime.fromisoformat(status.completion_time) + grace)
    released = attempt.model_copy(update={"released_time": rfc3339(gone, "seconds")})
    ledger = account(seen.run, attempt, released, None, gone)
    conditions = when_stopped(status)
    return status.model_copy(
        update={"current_attempt": released, "ledger": ledger, "conditions": conditions}
    )


def _with_last_commit(seen: Observation, status: TrainingRunStatus) -> TrainingRunStatus:
    """With the commit that the workers of a failed run made when they were asked to end: another
    run goes on from it."""
    zeros = (p for p in seen.pods if p.attempt == status.attempt and p.index == 0)
    words = [p.termination for p in zeros if p.termination and not (p.stray or p.prepares)]
    told = next((word.checkpoint for word in words if word.checkpoint), None)
    known = status.checkpoint
    if told is None or (known is not None and told.step <= known.step):
        return status
    commit = CheckpointStatus(step=told.step, time=told.time, url=told.url)
    conditions = tuple(
        condition.model_copy(
            update={"status": "True", "last_transition_time": rfc3339(seen.now, "seconds")}
        )
        if condition.type == "CheckpointHealthy" and condition.status != "True"
        else condition
        for condition in status.conditions
    )
    return status.model_copy(update={"checkpoint": commit, "conditions": conditions})


def _still_prepares(seen: Observation) -> tuple[JobRef, ...]:
    """The Job that prepares the data, while it would replace pods that are deleted."""
    view = seen.preparation
    return (JobRef.of(view),) if view is not None and view.at_work else ()


def overdue(seen: Observation) -> tuple[PodRef, ...]:
    """Pods that should have ended and will not: deleted at once.

    That their processes may still run on a node that is cut off does no harm: what they commit lies
    under their own attempt's prefix, and the next attempt has chosen its parent by then.
    """
    attempt = seen.run.status.current_attempt
    if attempt is not None and attempt.ended_time is None and seen.run.status.phase not in TERMINAL:
        return ()  # its end is put on record first
    ended = datetime.fromisoformat(attempt.ended_time) if attempt and attempt.ended_time else None
    grace = timedelta(seconds=seconds(seen.run.spec.termination_grace_period))

    def is_overdue(pod: PodView) -> bool:
        if pod.over or not pod.deleting or pod.gone_after is None:
            return False
        silent = pod.node_silent or pod.node in seen.lost_nodes
        patience = _OF_SILENT_NODE if silent else _OF_LIVING_NODE
        # The API server's clock and ours both say so; either may be wrong.
        by_ours = ended is None or seen.now - ended > (patience if silent else grace + patience)
        return seen.now - pod.gone_after > patience and by_ours

    return tuple(PodRef.of(pod, at_once=True) for pod in seen.pods if is_overdue(pod))
