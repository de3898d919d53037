"""From what is to what should be: one run's observation in, a decision out. Pure.

The order of effects is part of the decision's meaning (`act` keeps it): children that may exist are
ensured first, then the status is written, and only a status that is already stored lets a Job be
created or deleted. So an operator killed at any point finds, when it comes back, either the old
status and does it all again, or the new one and goes on from there.

A run's life, and where it is decided: here, what comes before an attempt and between two;
`attempt.py`, while one has its Job; `ending.py`, when the run is over.
"""

from __future__ import annotations

from datetime import datetime

from daybreak_operator import sizing
from daybreak_operator.api.status import TERMINAL, AttemptStatus, TrainingRunStatus
from daybreak_operator.attempt import with_job
from daybreak_operator.children.config import config_map, network_policy, service
from daybreak_operator.children.job import devices_per_node, job
from daybreak_operator.children.queueing import refusal
from daybreak_operator.decision import Decision, JobRef, concluded
from daybreak_operator.draft import Draft
from daybreak_operator.ending import (
    OLD_PODS_REMAIN,
    after_end,
    fail,
    overdue,
    release,
    told_of_suspension,
    without_workers,
)
from daybreak_operator.limits import reached
from daybreak_operator.observation import FixedRecipe, JobView, Observation
from daybreak_operator.preparing import paused, prepared
from daybreak_operator.restarts import avoided, end_attempt, interrupted

__all__ = ["Decision", "decide"]

_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 1.0, 15.0
_POLLS_OF_AGE = 10.0
_MISSING_RETRY_SECONDS = 5.0
_REFUSED_RETRY_SECONDS = 30.0
_RETRIES_OF_AGE = 20.0
_IDLE_SECONDS = 60.0


def decide(seen: Observation) -> Decision | None:
    """What to do now; None for a run that is being deleted, which the garbage collector clears,
    and for one that another controller manages."""
    run, draft = seen.run, Draft(seen)
    if run.deleting or not run.ours:
        return None
    if run.status.phase in TERMINAL:
        return after_end(seen)
    current = next((j for j in seen.jobs if j.attempt == run.status.attempt), None)
    if current is not None and run.status.attempt > 0:
        return with_job(draft, current)
    return _without_job(draft)


def _without_job(draft: Draft) -> Decision:
    seen = draft.observation
    _note_changes(draft)
    at_work = any(not pod.over and not pod.prepares for pod in seen.pods)
    left = at_work or any(_is_left(job) for job in seen.jobs)
    if not left:
        release(draft, _known_to_be_gone_by(draft.stored))
    if seen.run.spec.suspend:
        return _waiting_for_pods(draft) if left else _suspended(draft)
    if (limit := reached(draft, at_work=at_work)) is not None:
        return fail(draft, limit.reason, limit.message)
    if left:
        return _waiting_for_pods(draft)
    if seen.recipe is None:
        # First of all, for nothing else that is put right would help.
        assert seen.recipe_problem is not None  # one of the two is there
        return fail(draft, "InvalidRecipe", seen.recipe_problem)
    if (decision := _held_up(draft)) is not None:
        return decision
    if (decision := prepared(draft)) is not None:
        return decision
    if (pause := _pause(draft)) > 0:
        return _backs_off(draft, pause)
    if draft.stored.attempt == 0 or _ended(draft.get("current_attempt")):
        return _next_attempt(draft)
    return _make_job(draft, seen.recipe)


def _note_changes(draft: Draft) -> None:
    """What has become of the attempt, or of the wish to suspend, since the status was written."""
    run, status = draft.observation.run, draft.stored
    if status.workers is not None and not _ended(status.current_attempt):
        # Its Job was seen, is not there any more, and nobody here has deleted it.
        end_attempt(draft)
        interrupted(draft)
        draft.note("Warning", "JobLost", f"the Job of attempt {status.attempt} is gone")
    if status.phase == "Suspended" and not run.spec.suspend:
        commit = draft.get("checkpoint")
        goes_on = f"goes on from step {commit.step}" if commit else "begins"
        draft.note("Normal", "Resumed", f"spec.suspend is false: training {goes_on}")


def _suspended(draft: Draft) -> Decision:
    if not _ended(draft.get("current_attempt")):
        end_attempt(draft, expected=True)  # its Job was never seen
    told_of_suspension(draft)
    without_workers(draft)
    draft.settle("Suspended", "Suspended", "spec.suspend is true")
    return paused(draft)


def _backs_off(draft: Draft, pause: float) -> Decision:
    without_workers(draft)
    draft.settle("Restarting", "BackOff", f"the next attempt waits until {_until(draft)}")
    return concluded(draft, min(pause, _IDLE_SECONDS))


def _make_job(draft: Draft, recipe: FixedRecipe) -> Decision:
    """The attempt's number is stored and its Job was never seen: makes it, once."""
    seen, status = draft.observation, draft.stored
    run, attempt = seen.run, status.current_attempt
    assert attempt is not None  # stored together with the number
    if status.phase == "Pending" and (changed := _of_new_size(draft, attempt)) != attempt:
        draft.values["current_attempt"] = changed
        text = f"attempt {attempt.number} starts on {changed.nodes} node(s)"
        draft.settle("Starting", "AttemptStarting", text)
        draft.note("Normal", "AttemptStarted", text)
        return concluded(draft)
    ledger = status.ledger
    body = job(
        run,
        attempt.number,
        recipe,
        nodes=attempt.nodes,
        avoided=avoided(run, seen.now),
        held_seconds=ledger.held_seconds if ledger else 0,
    )
    return Decision(
        status,
        ensure=(config_map(run, recipe), service(run), network_policy(run)),
        create_job=body,
        again_seconds=_MISSING_RETRY_SECONDS,
    )


def _held_up(draft: Draft) -> Decision | None:
    """What keeps an attempt from being made, and is the user's to put right; tried again until it
    is."""
    seen = draft.observation
    unsupported = refusal(seen.run)
    for reason, sentences, retry in (
        ("PartialAdmissionUnsupported", (unsupported,) if unsupported else (), _IDLE_SECONDS),
        ("NameConflict", seen.foreign, _MISSING_RETRY_SECONDS),
        ("ObjectRefused", seen.refused, _REFUSED_RETRY_SECONDS),
        ("MissingObject", seen.missing, _MISSING_RETRY_SECONDS),
    ):
        if sentences:
            problem = " ".join(sentences)
            draft.note("Warning", reason, problem)
            draft.settle("Pending", reason, problem)
            # Soon at first, for people are about to put it right; then seldom: others may be many.
            age = (seen.now - seen.run.created).total_seconds() / _RETRIES_OF_AGE
            return concluded(draft, min(max(retry, age), _IDLE_SECONDS))
    return None


def _size(draft: Draft) -> int:
    """Nodes of the attempt that is about to be made; notes where that is a change."""
    run, status, nodes = draft.observation.run, draft.stored, sizing.next_size(draft)
    before, scaling = status.current_attempt, status.scaling
    if before is not None and nodes != (scaling.nodes if scaling else before.nodes):
        lost = sizing.reduced(run) is not None
        sizing.changed(draft, nodes, sizing.grown(run, nodes) if lost else "Requested")
    return nodes


def _of_new_size(draft: Draft, attempt: AttemptStatus) -> AttemptStatus:
    """As it was its Job was refused; the user may have changed that since."""
    devices = devices_per_node(draft.observation.run)
    return attempt.model_copy(update={"nodes": _size(draft), "devices_per_node": devices})


def _next_attempt(draft: Draft) -> Decision:
    seen, status = draft.observation, draft.stored
    assert seen.recipe is not None  # decided before
    number = 1 + max([status.attempt, *(j.attempt for j in seen.jobs)])
    nodes = _size(draft)
    commit = draft.get("checkpoint")
    draft.values |= {
        "attempt": number,
        "current_attempt": AttemptStatus(
            number=number,
            nodes=nodes,
            devices_per_node=devices_per_node(seen.run),
            created_time=draft.now,
            start_step=commit.step if commit is not None else 0,
        ),
        "recipe_hash": seen.recipe.hash,
        "workers": None,
        "next_attempt_time": None,
        "start_time": status.start_time or draft.now,
    }
    draft.settle("Starting", "AttemptStarting", f"attempt {number} is starting")
    draft.note("Normal", "AttemptStarted", f"attempt {number} starts on {nodes} node(s)")
    return concluded(draft)


def _waiting_for_pods(draft: Draft) -> Decision:
    """An earlier attempt's pods at work, or Jobs that are not gone yet. Pods that have ended hold
    nothing; those of a Job that was deleted without them stay for ever."""
    seen = draft.observation
    stuck = overdue(seen)
    phase = draft.stored.phase
    if seen.run.spec.suspend:
        told_of_suspension(draft)
        phase = "Suspended"
    elif phase in ("Running", "Starting", "Suspended", "Queued"):
        phase = "Restarting"
    text = "waiting until the last attempt's pods are gone"
    stray = sorted(p.name for p in seen.pods if not (p.over or p.deleting or p.prepares))
    if stray and not seen.jobs:
        text += f"; pod {stray[0]} has lost its Job: it is waited for until it ends or is deleted"
    draft.settle(phase, OLD_PODS_REMAIN, text)
    for pod in stuck:
        draft.note(
            "Warning",
            "PodForced",
            f"pod {pod.name} did not end in its grace period and is deleted at once: its commits "
            "cannot be mistaken for those of the next attempt",
        )
    live = sorted((j for j in seen.jobs if _is_left(j) and not j.deleting), key=_attempt)
    if live and live[-1].attempt > draft.stored.attempt:
        newest = live.pop()
        draft.values["attempt"] = newest.attempt
        draft.note("Warning", "JobAdopted", f"Job {newest.name} is this run's, and went unrecorded")
    strays = tuple(JobRef.of(job) for job in live)
    return concluded(draft, _until_gone(draft), delete_jobs=strays, delete_pods=stuck)


def _until_gone(draft: Draft) -> float:
    """Watches tell of a pod's end; asking is for one that they missed, and costs two lists each
    time: seldom where pods have been there for long."""
    attempt = draft.get("current_attempt")
    ended = datetime.fromisoformat(attempt.ended_time) if attempt and attempt.ended_time else None
    age = draft.observation.now - (ended or draft.observation.run.created)
    return min(max(age.total_seconds() / _POLLS_OF_AGE, _MIN_POLL_SECONDS), _MAX_POLL_SECONDS)


def _known_to_be_gone_by(stored: TrainingRunStatus) -> str | None:
    """Of a suspended run that a version from before `releasedTime` has seen without pods: how far
    its ledger goes. The days since then were not held."""
    truths = {
        condition.type: (condition.status, condition.reason) for condition in stored.conditions
    }
    if truths.get("Suspended") != ("True", "Suspended") or stored.ledger is None:
        return None
    return stored.ledger.accounted_until


def _is_left(job: JobView) -> bool:
    """Where the current attempt has no Job, another attempt's is on its way out, or was forgotten:
    a status that was restored or edited knows less than there is."""
    return job.deleting or job.attempt > 0


def _attempt(job: JobView) -> int:
    return job.attempt


def _ended(attempt: AttemptStatus | None) -> bool:
    return attempt is None or attempt.ended_time is not None


def _until(draft: Draft) -> str:
    return str(draft.get("next_attempt_time"))


def _pause(draft: Draft) -> float:
    """Seconds until the next attempt may be made."""
    time = draft.get("next_attempt_time")
    if time is None:
        return 0.0
    return (datetime.fromisoformat(time) - draft.observation.now).total_seconds()
