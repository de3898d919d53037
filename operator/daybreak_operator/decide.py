"""From what is to what should be: one run's observation in, a decision out. Pure.

The order of effects is part of the decision's meaning (`act` keeps it): children that may exist are
ensured first, then the status is written, and only a status that is already stored lets a Job be
created or deleted. So an operator killed at any point finds, when it comes back, either the old
status and does it all again, or the new one and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import (
    TERMINAL,
    FailureStatus,
    Phase,
    TrainingRunStatus,
    WorkersStatus,
)
from daybreak_operator.children import names
from daybreak_operator.children.config import config_map, service
from daybreak_operator.children.job import job
from daybreak_operator.draft import Draft, EventNote
from daybreak_operator.failures import Failure, classify
from daybreak_operator.observation import JobView, Observation, PodView
from daybreak_trainer.contract import rfc3339

_POLL_SECONDS = 1.0
_MISSING_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Decision:
    status: TrainingRunStatus
    ensure: tuple[dict[str, Any], ...] = ()
    """Objects to create where they do not exist."""
    create_job: dict[str, Any] | None = None
    delete_jobs: tuple[str, ...] = ()
    """In the foreground: SIGTERM, a checkpoint, and only then gone."""
    events: tuple[EventNote, ...] = ()
    again_seconds: float | None = None
    """When to look again though nothing happens."""


def decide(seen: Observation) -> Decision | None:
    """What to do now; None for a run that is being deleted, which the garbage collector clears."""
    run, draft = seen.run, Draft(seen)
    if run.deleting:
        return None
    if run.status.phase in TERMINAL:
        return Decision(run.status)
    if seen.recipe is None:
        assert seen.recipe_problem is not None  # one of the two is there
        return _fail(draft, "InvalidRecipe", seen.recipe_problem)
    current = next((j for j in seen.jobs if j.attempt == run.status.attempt), None)
    if current is None:
        return _without_job(draft)
    return _with_job(draft, current)


# --- no Job ------------------------------------------------------------------------------------


def _without_job(draft: Draft) -> Decision:
    seen = draft.observation
    run, recipe = seen.run, seen.recipe
    assert recipe is not None  # decided before
    if run.spec.suspend and not _gang_alive(seen):
        return _settled(draft, "Suspended", "Suspended", "spec.suspend is true")
    if _gang_alive(seen):
        return _waiting(draft, "OldPodsRemain", "waiting until the last attempt's pods are gone")
    if problem := " ".join((*seen.foreign, *seen.missing)):
        reason = "NameConflict" if seen.foreign else "MissingObject"
        draft.note("Warning", reason, problem)
        decision = _settled(draft, "Pending", reason, problem)
        return replace(decision, again_seconds=_MISSING_RETRY_SECONDS)
    if run.status.attempt == 0 or run.status.workers is not None:
        return _next_attempt(draft)
    # The attempt's number is stored and its Job was never seen: make it, once.
    return Decision(
        run.status,
        ensure=(config_map(run, recipe), service(run)),
        create_job=job(run, run.status.attempt, recipe),
    )


def _next_attempt(draft: Draft) -> Decision:
    seen = draft.observation
    assert seen.recipe is not None  # decided before
    attempt = 1 + max([seen.run.status.attempt, *(j.attempt for j in seen.jobs)])
    draft.values |= {
        "attempt": attempt,
        "phase": "Starting",
        "recipe_hash": seen.recipe.hash,
        "workers": None,
        "start_time": seen.run.status.start_time or rfc3339(seen.now, "seconds"),
    }
    draft.reason, draft.message = "AttemptStarting", f"attempt {attempt} is starting"
    nodes = seen.run.spec.workers.nodes
    draft.note("Normal", "AttemptStarted", f"attempt {attempt} starts on {nodes} node(s)")
    return Decision(draft.status(), events=tuple(draft.events))


# --- a Job -------------------------------------------------------------------------------------


def _with_job(draft: Draft, current: JobView) -> Decision:
    seen = draft.observation
    run = seen.run
    pods = tuple(pod for pod in seen.pods if pod.attempt == current.attempt)
    draft.values["workers"] = WorkersStatus(
        desired=current.parallelism,
        ready=sum(pod.ready for pod in pods),
        selector=names.selector(run),
    )
    zero = next((pod for pod in pods if pod.index == 0), None)
    told = zero.termination if zero is not None else None
    draft.take((told.progress if told else None) or seen.progress)
    if current.worker_zero_done or (zero is not None and zero.phase == "Succeeded"):
        return _complete(draft)
    if current.deleting or _was_counted(run):
        return _leaving(draft, current)
    failure = classify(current, pods)
    if failure is not None:
        return _failed(draft, failure)
    if run.spec.suspend:
        return _stop(draft, current, "Suspending", "spec.suspend is true")
    if current.parallelism != run.spec.workers.nodes:
        change = f"from {current.parallelism} to {run.spec.workers.nodes} node(s)"
        draft.note("Normal", "Resizing", f"the run goes on {change} from its next checkpoint")
        return _stop(draft, current, "Resizing", change)
    _running(draft, current, pods)
    return Decision(draft.status(), events=tuple(draft.events), again_seconds=_POLL_SECONDS)


def _running(draft: Draft, current: JobView, pods: tuple[PodView, ...]) -> None:
    progress = draft.observation.progress
    if current.suspended:
        draft.values["phase"] = "Queued"
        draft.reason, draft.message = "Queued", "the Job waits for its queue to admit it"
    elif progress is not None and progress.first_step_at is not None:
        draft.values["phase"] = "Running"
        draft.reason, draft.message = progress.phase, progress.message or "training"
    elif progress is None and draft.observation.run.status.phase == "Running":
        # Worker 0 did not answer just now; what it does has not changed for that.
        draft.reason, draft.message = "Unanswered", "worker 0 does not answer"
    else:
        draft.values["phase"] = "Starting"
        stuck = next((f"pod {p.name}: {p.waiting}" for p in pods if p.waiting), None)
        draft.reason, draft.message = "Starting", stuck or "workers are starting"


def _complete(draft: Draft) -> Decision:
    seen = draft.observation
    draft.values |= {"phase": "Complete", "completion_time": rfc3339(seen.now, "seconds")}
    progress = draft.values.get("progress") or seen.run.status.progress
    if progress is not None and progress.total_steps:
        draft.values["progress"] = progress.model_copy(
            update={
                "step": progress.total_steps,
                "percent": 100,
                "estimated_completion_time": None,
            }
        )
    draft.reason, draft.message = "Complete", "training is complete"
    draft.note("Normal", "Complete", "training is complete")
    return Decision(draft.status(), events=tuple(draft.events))


def _failed(draft: Draft, failure: Failure) -> Decision:
    """Records why the attempt ended; the Job is deleted when that is stored."""
    seen = draft.observation
    run = seen.run
    draft.take(failure.progress)
    draft.take_checkpoint(failure.checkpoint)
    draft.values["last_failure"] = FailureStatus(
        reason=failure.reason,
        message=failure.message,
        exit_code=failure.exit_code,
        pod=failure.pod,
        attempt=run.status.attempt,
        step=failure.step,
        time=rfc3339(seen.now, "seconds"),
    )
    if failure.verdict == "final":
        return _fail(draft, failure.reason, failure.message)
    if failure.verdict == "charged":
        allowed = run.spec.failure_policy.max_restarts
        if run.status.restarts >= allowed:
            return _fail(
                draft,
                "RestartLimitExceeded",
                f"attempt {run.status.attempt} failed and failurePolicy.maxRestarts is {allowed}: "
                f"{failure.reason}: {failure.message}",
            )
        draft.values["restarts"] = run.status.restarts + 1
    draft.values["phase"] = "Restarting"
    draft.reason, draft.message = failure.reason, failure.message
    draft.note("Warning", failure.reason, f"attempt {run.status.attempt}: {failure.message}")
    return Decision(draft.status(), events=tuple(draft.events))


def _was_counted(run: TrainingRun) -> bool:
    failure = run.status.last_failure
    return failure is not None and failure.attempt == run.status.attempt


def _leaving(draft: Draft, current: JobView) -> Decision:
    """The attempt's end is on record, or its Job is going: see it gone."""
    suspended = draft.observation.run.spec.suspend
    draft.values["phase"] = draft.observation.run.status.phase
    if draft.values["phase"] not in ("Restarting", "Suspended"):
        draft.values["phase"] = "Suspended" if suspended else "Restarting"
    draft.reason, draft.message = "Stopping", f"attempt {current.attempt} is stopping"
    return Decision(
        draft.status(),
        delete_jobs=() if current.deleting else (current.name,),
        events=tuple(draft.events),
        again_seconds=_POLL_SECONDS,
    )


def _stop(draft: Draft, current: JobView, reason: str, message: str) -> Decision:
    draft.values["phase"] = "Suspended" if reason == "Suspending" else "Restarting"
    draft.reason, draft.message = reason, message
    return Decision(
        draft.status(),
        delete_jobs=(current.name,),
        events=tuple(draft.events),
        again_seconds=_POLL_SECONDS,
    )


# --- ends --------------------------------------------------------------------------------------


def _fail(draft: Draft, reason: str, message: str) -> Decision:
    draft.values |= {
        "phase": "Failed",
        "completion_time": rfc3339(draft.observation.now, "seconds"),
    }
    draft.reason, draft.message = reason, message
    draft.note("Warning", reason, message)
    return Decision(draft.status(), events=tuple(draft.events))


def _settled(draft: Draft, phase: Phase, reason: str, message: str) -> Decision:
    draft.values["phase"] = phase
    draft.reason, draft.message = reason, message
    return Decision(draft.status(), events=tuple(draft.events))


def _waiting(draft: Draft, reason: str, message: str) -> Decision:
    draft.values["phase"] = draft.observation.run.status.phase
    draft.reason, draft.message = reason, message
    return Decision(draft.status(), again_seconds=_POLL_SECONDS)


def _gang_alive(seen: Observation) -> bool:
    """An earlier attempt's pods at work, or Jobs that are not gone yet. Pods that have ended hold
    nothing; those of a Job that was deleted without them stay for ever."""
    return any(not pod.over for pod in seen.pods) or any(job.deleting for job in seen.jobs)
