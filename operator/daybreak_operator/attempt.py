"""What to do with an attempt that has its Job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from daybreak_operator import sizing
from daybreak_operator.api.duration import seconds
from daybreak_operator.api.status import AttemptStatus, Phase, WorkersStatus
from daybreak_operator.children import names
from daybreak_operator.children.job import devices_per_node
from daybreak_operator.conditions import Truth
from daybreak_operator.decision import Decision, concluded
from daybreak_operator.draft import Draft
from daybreak_operator.ending import complete, fail, overdue
from daybreak_operator.failures import Failure, classify, stuck
from daybreak_operator.hang import hung, told_of_trouble
from daybreak_operator.limits import reached
from daybreak_operator.observation import JobView, PodView
from daybreak_operator.restarts import end_attempt, interrupted, record
from daybreak_trainer.contract import rfc3339

_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 1.0, 15.0
_POLLS_OF_AGE = 4.0
_LEAVING_POLL_SECONDS = 1.0
_QUEUE_SECONDS = 30.0


def with_job(draft: Draft, job: JobView) -> Decision:
    seen = draft.observation
    run = seen.run
    pods = tuple(pod for pod in seen.pods if pod.attempt == job.attempt)
    attempt = _follow(draft, job, pods)
    zero = next((pod for pod in pods if pod.index == 0), None)
    told = zero.termination if zero is not None else None
    draft.take((told.progress if told else None) or seen.progress)
    if job.worker_zero_done or (zero is not None and zero.phase == "Succeeded"):
        return complete(draft)
    if job.deleting or attempt.ended_time is not None:
        return _leaving(draft, job)
    created = datetime.fromisoformat(attempt.created_time)
    policy = run.spec.health_policy
    failure = classify(job, pods, seen.lost_nodes) or stuck(pods, policy, created, seen.now)
    if failure is not None:
        return _failed(draft, failure)
    if run.spec.suspend:
        return _stop(draft, job, "Suspended", "Suspending", "spec.suspend is true")
    if (limit := reached(draft, at_work=True)) is not None:
        return fail(draft, limit.reason, limit.message)
    attempt = draft.get("current_attempt")  # with what worker 0 said
    if (failure := hung(draft, attempt, zero)) is not None:
        return _failed(draft, failure)
    if (decision := _resized(draft, job, pods, attempt)) is not None:
        return decision
    return _goes_on(draft, job, pods, attempt)


def _follow(draft: Draft, job: JobView, pods: Sequence[PodView]) -> AttemptStatus:
    """The attempt's times and workers, by what its Job and pods show."""
    run, now = draft.observation.run, draft.observation.now
    ready = sum(pod.ready for pod in pods)
    draft.values["workers"] = WorkersStatus(
        desired=job.parallelism,
        ready=ready,
        summary=f"{ready}/{job.parallelism}",
        selector=names.selector(run),
    )
    attempt = run.status.current_attempt
    if attempt is None or attempt.number != job.attempt:
        # A status from before there were such records.
        attempt = AttemptStatus(
            number=job.attempt,
            nodes=job.parallelism,
            devices_per_node=devices_per_node(run),
            created_time=run.status.start_time or draft.now,
        )
    if job.suspended and attempt.admitted_time is not None and attempt.ended_time is None:
        # A queue has taken the nodes back; the Job waits for others.
        interrupted(draft)
        draft.note("Warning", "Evicted", f"the queue has taken back attempt {job.attempt}'s nodes")
        attempt = attempt.model_copy(update={"admitted_time": None, "first_step_time": None})
    elif attempt.admitted_time is None and _all_placed(job, pods):
        created = datetime.fromisoformat(attempt.created_time)
        last = max((pod.scheduled_at for pod in pods if pod.scheduled_at), default=now)
        admitted = rfc3339(min(max(last, created), now), "seconds")
        attempt = attempt.model_copy(update={"admitted_time": admitted})
    draft.values["current_attempt"] = attempt
    return attempt


def _all_placed(job: JobView, pods: Sequence[PodView]) -> bool:
    if job.suspended:
        return False
    return len(pods) >= job.parallelism and all(p.node is not None or p.over for p in pods)


def _resized(
    draft: Draft, job: JobView, pods: Sequence[PodView], attempt: AttemptStatus
) -> Decision | None:
    """Stops an attempt that is to have another size."""
    run, now = draft.observation.run, draft.observation.now
    admitted = attempt.admitted_time is not None
    target = sizing.resize(draft, job.parallelism, admitted=admitted)
    if target is not None:
        nodes, reason = target
        change = f"from {job.parallelism} to {nodes} node(s)"
        sizing.changed(draft, nodes, reason)
        draft.note("Normal", "Resizing", f"the run goes on {change} from its next checkpoint")
        return _stop(draft, job, "Restarting", "Resizing", change)
    placed = [pod for pod in pods if pod.node is not None and not pod.over]
    if admitted or not placed or len(placed) >= job.parallelism or job.suspended:
        return None
    limit = timedelta(seconds=seconds(run.spec.health_policy.scheduling_deadline))
    created = datetime.fromisoformat(attempt.created_time)
    first = min(max(p.scheduled_at or created, created) for p in placed)
    if now - first < limit:
        return None
    why = next((p.unschedulable for p in pods if p.unschedulable), "their pods are not there")
    fewest = run.spec.workers.min_nodes
    if fewest is not None and fewest <= len(placed):
        sizing.changed(draft, len(placed), "NodesLost")
        change = f"from {job.parallelism} to {len(placed)} node(s), for there are no more: {why}"
        draft.note("Warning", "FewerNodes", f"the run goes on {change}")
        return _stop(draft, job, "Restarting", "FewerNodes", change)
    failure = Failure(
        "uncharged",
        "Unschedulable",
        f"{job.parallelism - len(placed)} of {job.parallelism} workers had no node for "
        f"{run.spec.health_policy.scheduling_deadline} (healthPolicy.schedulingDeadline) while the "
        f"others held theirs: {why}",
        "Interruption",
    )
    return _failed(draft, failure)


def _goes_on(
    draft: Draft, job: JobView, pods: Sequence[PodView], attempt: AttemptStatus
) -> Decision:
    progress = draft.observation.progress
    again = _poll_seconds(draft, attempt)
    told_of_trouble(draft, pods)
    waiting = next((p.unschedulable for p in pods if p.unschedulable and not p.over), None)
    if job.suspended:
        text = "the Job waits for its queue to admit it"
        draft.settle("Queued", "Queued", text)
        draft.truths["Admitted"] = Truth("False", "Queued", text)
        again = _QUEUE_SECONDS
    elif attempt.admitted_time is None and waiting is not None:
        text = f"workers wait for nodes: {waiting}"
        held = any(pod.node is not None for pod in pods)
        draft.settle("Starting" if held else "Queued", "Unschedulable", text)
        draft.truths["Admitted"] = Truth("False", "Unschedulable", text)
        again = _MAX_POLL_SECONDS
    elif attempt.first_step_time is not None and progress is not None:
        draft.settle("Running", progress.phase, progress.message or "training")
    elif attempt.first_step_time is not None:
        # Worker 0 did not answer just now; what it does has not changed for that.
        draft.settle("Running", "Unanswered", "worker 0 does not answer")
    else:
        held_up = next((f"pod {p.name}: {p.waiting}" for p in pods if p.waiting), None)
        draft.settle("Starting", "Starting", held_up or "workers are starting")
    return concluded(draft, again)


def _poll_seconds(draft: Draft, attempt: AttemptStatus) -> float:
    """Often while an attempt is young, and for long ones seldom: watches tell of ends."""
    age = draft.observation.now - datetime.fromisoformat(attempt.created_time)
    return min(max(age.total_seconds() / _POLLS_OF_AGE, _MIN_POLL_SECONDS), _MAX_POLL_SECONDS)


def _failed(draft: Draft, failure: Failure) -> Decision:
    """Records why the attempt ended; the Job is deleted when that is stored."""
    if (end := record(draft, failure)) is not None:
        return fail(draft, *end)
    draft.settle("Restarting", failure.reason, failure.message)
    attempt = draft.stored.attempt
    draft.note("Warning", failure.reason, f"attempt {attempt}: {failure.message}")
    return concluded(draft)


def _stop(draft: Draft, job: JobView, phase: Phase, reason: str, message: str) -> Decision:
    """Ends an attempt on purpose: SIGTERM, a commit, and the Job goes."""
    end_attempt(draft, expected=True)
    draft.settle(phase, reason, message)
    return concluded(draft, _LEAVING_POLL_SECONDS, delete_jobs=(job.name,))


def _leaving(draft: Draft, job: JobView) -> Decision:
    """The attempt's end is on record, or its Job is going: see it gone."""
    seen = draft.observation
    if draft.get("current_attempt").ended_time is None:
        end_attempt(draft, expected=seen.run.spec.suspend)
        if not seen.run.spec.suspend:
            interrupted(draft)
    phase = draft.stored.phase
    if phase not in ("Restarting", "Suspended"):
        phase = "Suspended" if seen.run.spec.suspend else "Restarting"
    draft.settle(phase, "Stopping", f"attempt {job.attempt} is stopping")
    return concluded(
        draft,
        _LEAVING_POLL_SECONDS,
        delete_jobs=() if job.deleting else (job.name,),
        delete_pods=overdue(seen),
    )
