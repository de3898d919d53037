"""What to do with an attempt that has its Job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from daybreak_operator import sizing
from daybreak_operator.api.duration import seconds
from daybreak_operator.api.status import AttemptStatus, Phase, WorkersStatus
from daybreak_operator.children import names, queueing
from daybreak_operator.children.job import devices_per_node, workers_hash
from daybreak_operator.conditions import Truth
from daybreak_operator.decision import Decision, JobRef, concluded
from daybreak_operator.draft import Draft
from daybreak_operator.ending import complete, fail, overdue, release, told_of_suspension
from daybreak_operator.failures import Failure, classify, stuck
from daybreak_operator.hang import hung, told_of_trouble
from daybreak_operator.limits import by_limits_of_now, reached
from daybreak_operator.observation import JobView, PodView
from daybreak_operator.remedies import of_placement
from daybreak_operator.restarts import end_attempt, forgive, interrupted, record
from daybreak_trainer.contract import rfc3339

_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 1.0, 15.0
_POLLS_OF_AGE = 4.0
_LEAVING_POLL_SECONDS = 1.0
_QUEUE_SECONDS = 30.0


def with_job(draft: Draft, job: JobView) -> Decision:
    seen = draft.observation
    run = seen.run
    pods = tuple(p for p in seen.pods if p.attempt == job.attempt and not (p.stray or p.prepares))
    attempt = _follow(draft, job, pods)
    zero = next((pod for pod in pods if pod.index == 0), None)
    told = zero.termination if zero is not None else None
    draft.take((told.progress if told else None) or draft.heard)
    if told is not None:
        draft.take_checkpoint(told.checkpoint)
    # A sidecar may keep a pod going whose trainer is done.
    if job.worker_zero_done or (zero is not None and zero.exit_code == 0):
        return complete(draft, zero.finished_at if zero is not None else None)
    if job.deleting or attempt.ended_time is not None:
        return _leaving(draft, job)
    if job.suspended and _was_placed(attempt, pods):
        return _evicted(draft, job)
    if (decision := _corrected(draft, job, pods)) is not None:
        return decision
    created = datetime.fromisoformat(attempt.created_time)
    failure = classify(job, pods, seen.lost_nodes) or stuck(pods, run.spec, created, seen.now)
    if failure is not None:
        return _failed(draft, by_limits_of_now(draft, job, failure))
    if run.spec.suspend:
        draft.note("Normal", "Suspending", "spec.suspend is true: the workers commit and go")
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
        selector=names.worker_selector(run),
    )
    attempt = run.status.current_attempt
    if attempt is None or attempt.number != job.attempt:
        # A status from before there were such records.
        attempt = AttemptStatus(
            number=job.attempt,
            nodes=job.parallelism,
            devices_per_node=devices_per_node(run),
            created_time=run.status.start_time or draft.now,
            first_step_time=_first_step(draft),
        )
    if attempt.admitted_time is None and _all_placed(job, pods):
        created = datetime.fromisoformat(attempt.created_time)
        last = max((pod.scheduled_at for pod in pods if pod.scheduled_at), default=now)
        admitted = rfc3339(min(max(last, created), now), "seconds")
        attempt = attempt.model_copy(update={"admitted_time": admitted})
    draft.values["current_attempt"] = attempt
    return attempt


def _first_step(draft: Draft) -> str | None:
    """Of an attempt that an earlier version began: one that trains is past the deadline for its
    start, whether or not its worker 0 answers just now."""
    progress = draft.stored.progress
    return progress.first_step_time if progress and draft.stored.phase == "Running" else None


def _was_placed(attempt: AttemptStatus, pods: Sequence[PodView]) -> bool:
    return attempt.admitted_time is not None or any(pod.deleting or pod.over for pod in pods)


def _evicted(draft: Draft, job: JobView) -> Decision:
    """A queue has taken the nodes back. The attempt is over: other pods under its number could not
    be told from those that leave, in its checkpoints nor in its ledger."""
    end_attempt(draft, job.suspended_at)
    release(draft)
    interrupted(draft)
    text = f"the queue has taken back attempt {job.attempt}'s nodes"
    draft.note("Warning", "Evicted", text)
    draft.settle("Restarting", "Evicted", text)
    return concluded(draft, _LEAVING_POLL_SECONDS, delete_jobs=(JobRef.of(job),))


def _corrected(draft: Draft, job: JobView, pods: Sequence[PodView]) -> Decision | None:
    """Stops an attempt whose workers all wait, and are to be made by something else now: it may be
    what they wait for."""
    run = draft.observation.run
    if run.spec.suspend or job.failed is not None or any(p.phase != "Pending" for p in pods):
        return None
    if job.workers_hash in ("", workers_hash(run.spec.workers)):
        return None
    text = f"spec.workers changed before attempt {job.attempt} had begun: it is made anew"
    draft.note("Normal", "WorkersChanged", text)
    return _stop(draft, job, "Restarting", "WorkersChanged", text)


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
    if admitted or len(placed) >= job.parallelism or job.suspended:
        return None
    limit = timedelta(seconds=seconds(run.spec.health_policy.scheduling_deadline))
    created = datetime.fromisoformat(attempt.created_time)
    first = min((max(p.scheduled_at or created, created) for p in placed), default=created)
    if now - first < limit:
        return None
    if not placed:
        return _on_suspect_nodes(draft, job, pods)
    why = _lack(draft, job, pods) or "their pods are not there"
    fewest = run.spec.workers.min_nodes
    if fewest is not None and fewest <= len(placed):
        sizing.changed(draft, len(placed), "NodesLost")
        change = f"from {job.parallelism} to {len(placed)} node(s), for there are no more: {why}"
        draft.note("Warning", "FewerNodes", f"the run goes on {change}")
        return _stop(draft, job, "Restarting", "FewerNodes", change)
    forgive(draft)
    failure = Failure(
        "uncharged",
        "Unschedulable",
        f"{job.parallelism - len(placed)} of {job.parallelism} workers had no node for "
        f"{run.spec.health_policy.scheduling_deadline} (healthPolicy.schedulingDeadline) while the "
        f"others held theirs: {why}",
        "Interruption",
    )
    return _failed(draft, failure)


def _on_suspect_nodes(draft: Draft, job: JobView, pods: Sequence[PodView]) -> Decision | None:
    """Workers that all wait are queued for as long as it takes, but not for nodes that this run
    itself keeps away from: there are no others."""
    if not any(pod.unschedulable for pod in pods) or not forgive(draft):
        return None
    text = "no node takes the run's workers but those on which they failed: these are tried again"
    draft.note("Warning", "SuspectNodesNeeded", text)
    return _stop(draft, job, "Restarting", "SuspectNodesNeeded", text)


def _goes_on(
    draft: Draft, job: JobView, pods: Sequence[PodView], attempt: AttemptStatus
) -> Decision:
    progress = draft.heard
    again = _poll_seconds(draft, attempt)
    told_of_trouble(draft, pods)
    lack = _lack(draft, job, pods)
    if job.suspended:
        text = "the Job waits for its queue to admit it"
        if (why := draft.observation.queue_says) is not None:
            text += f": {why}"
            again = _QUEUE_SECONDS
        draft.settle("Queued", "Queued", text)
        draft.truths["Admitted"] = Truth("False", "Queued", text)
    elif attempt.admitted_time is None and lack is not None:
        text = f"workers wait for nodes: {lack}"
        held = any(pod.node is not None for pod in pods)
        draft.settle("Starting" if held else "Queued", "Unschedulable", text)
        draft.truths["Admitted"] = Truth("False", "Unschedulable", text)
        if not held:  # else schedulingDeadline runs, and devices are held for nothing
            again = _MAX_POLL_SECONDS
    elif attempt.admitted_time is None and (unheard := _unheard(draft, job, pods)) is not None:
        draft.settle("Queued", "Unheard", unheard)
        draft.truths["Admitted"] = Truth("False", "Unheard", unheard)
    elif attempt.first_step_time is not None and progress is not None:
        draft.settle("Running", progress.phase, progress.message or "training")
    elif attempt.first_step_time is not None:
        # Worker 0 did not answer just now; what it does has not changed for that.
        draft.settle("Running", "Unanswered", "worker 0 does not answer")
    else:
        held_up = next((f"pod {p.name}: {p.waiting}" for p in pods if p.waiting), None)
        text = held_up or "workers are starting"
        if len(pods) < job.parallelism:
            text = f"not all pods are made yet: `kubectl describe job {job.name}` says why"
        draft.settle("Starting", "Starting", text)
    return concluded(draft, again)


def _lack(draft: Draft, job: JobView, pods: Sequence[PodView]) -> str | None:
    """Why a worker has no node, by the scheduler, and what it asks of one."""
    pod = next((pod for pod in pods if pod.unschedulable and not pod.over), None)
    if pod is None:
        return None
    run = draft.observation.run
    gang = queueing.no_room(run, job.uid)
    return f"{gang}{pod.unschedulable}; {of_placement(run.spec, pod)}"


def _unheard(draft: Draft, job: JobView, pods: Sequence[PodView]) -> str | None:
    """That all workers are there and wait, and no scheduler says why."""
    if len(pods) < job.parallelism or any(pod.node is not None for pod in pods):
        return None
    return queueing.unheard(draft.observation.run)


def _poll_seconds(draft: Draft, attempt: AttemptStatus) -> float:
    """Often while an attempt is young, and for long ones seldom: watches tell of ends."""
    age = draft.observation.now - datetime.fromisoformat(attempt.created_time)
    return min(max(age.total_seconds() / _POLLS_OF_AGE, _MIN_POLL_SECONDS), _MAX_POLL_SECONDS)


def _failed(draft: Draft, failure: Failure) -> Decision:
    """Records why the attempt ended; the Job is deleted when that is stored."""
    if (end := record(draft, failure)) is not None:
        return fail(draft, *end)
    release(draft)
    draft.settle("Restarting", failure.reason, failure.message)
    attempt = draft.stored.attempt
    draft.note("Warning", failure.reason, f"attempt {attempt}: {failure.message}")
    return concluded(draft)


def _stop(draft: Draft, job: JobView, phase: Phase, reason: str, message: str) -> Decision:
    """Ends an attempt on purpose: SIGTERM, a commit, and the Job goes."""
    end_attempt(draft, expected=True)
    draft.settle(phase, reason, message)
    return concluded(draft, _LEAVING_POLL_SECONDS, delete_jobs=(JobRef.of(job),))


def _leaving(draft: Draft, job: JobView) -> Decision:
    """The attempt's end is on record, or its Job is going: see it gone."""
    seen = draft.observation
    attempt = draft.get("current_attempt")
    commit = draft.get("checkpoint")
    if attempt.ended_time is None:
        end_attempt(draft, expected=seen.run.spec.suspend)
        if not seen.run.spec.suspend:
            interrupted(draft)
    elif commit is not None and commit.step > attempt.start_step and draft.stored.fruitless:
        # It was told only now that there is a newer commit.
        draft.values |= {"fruitless": 0, "no_progress": 0, "next_attempt_time": None}
    phase: Phase = "Suspended" if draft.stored.phase == "Suspended" else "Restarting"
    if seen.run.spec.suspend:
        told_of_suspension(draft)
        phase = "Suspended"
    draft.settle(phase, "Stopping", f"attempt {job.attempt} is stopping")
    return concluded(
        draft,
        _LEAVING_POLL_SECONDS,
        delete_jobs=() if job.deleting else (JobRef.of(job),),
        delete_pods=overdue(seen),
    )
