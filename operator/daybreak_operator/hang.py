"""Whether an attempt that has not failed is well, by what its worker 0 says. Pure.

The launcher in each pod has clocks of its own, for the start-up (until all workers have met, and
`startupDeadline` from there) and for the steps, and ends a worker that hangs. Those here are for
what it cannot see: a pod that never starts, and a launcher that hangs itself. A worker that is
ready and merely cannot be reached is not ended for it, whether or not it ever was in this attempt:
the network may be at fault, and it trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.status import AttemptStatus
from daybreak_operator.draft import Draft
from daybreak_operator.failures import Failure, node_lost
from daybreak_operator.observation import PodView
from daybreak_operator.remedies import is_about_image, of_start

_LAUNCHER_FIRST = timedelta(minutes=2)
"""The launcher's own clock runs out first and says more."""
_SILENCE = timedelta(minutes=2)


def hung(draft: Draft, attempt: AttemptStatus, zero: PodView | None) -> Failure | None:
    """What the deadlines of healthPolicy say of a live attempt; None where all is in time."""
    seen, policy = draft.observation, draft.observation.run.spec.health_policy
    if attempt.admitted_time is None:
        return None
    heard = draft.heard
    if heard is None and zero is not None and zero.ready:
        return None
    if attempt.first_step_time is None:
        limit = timedelta(seconds=seconds(policy.startup_deadline))
        waited = seen.now - datetime.fromisoformat(attempt.admitted_time)
        if waited < limit:
            return None
        return _failure(
            draft,
            zero,
            "StartupDeadlineExceeded",
            f"no step within {policy.startup_deadline} (healthPolicy.startupDeadline) of the time "
            "when all workers had a node",
        )
    advanced = _advanced(draft)
    if advanced is None:
        return None
    limit = timedelta(seconds=seconds(policy.progress_deadline)) + _LAUNCHER_FIRST
    if heard is not None and heard.phase != "Training":
        return None
    if seen.now - advanced < limit:
        return None
    return _failure(
        draft,
        zero,
        "Hang",
        f"no sign of progress for {policy.progress_deadline} (healthPolicy.progressDeadline), and "
        "the workers' own watchdog did not end them",
    )


def told_of_trouble(draft: Draft, pods: Sequence[PodView]) -> None:
    """Condition Degraded: what is wrong, as long as it is."""
    seen = draft.observation
    for pod in pods:
        if pod.stuck:
            remedy = of_start(seen.run.spec, pod)
            if not is_about_image(pod) or any(other.phase != "Pending" for other in pods):
                remedy += ", then suspend the run and resume it"
            reason = (pod.waiting or "").partition(":")[0]
            draft.degraded(reason, f"pod {pod.name}: {remedy}: {pod.waiting}")
    told_of_silence(draft, pods)
    if _is_silent(draft, pods):
        draft.degraded("WorkerSilent", "worker 0 does not answer the operator")
    heard = draft.heard
    if heard is not None and (straggler := heard.straggler) is not None:
        draft.degraded(
            "Straggler",
            f"rank {straggler.rank} of worker {straggler.worker} takes much longer than the others "
            "for its part of a step; a busy or throttled device, or a slow link of its node",
        )


def told_of_silence(draft: Draft, pods: Sequence[PodView]) -> None:
    """Condition Degraded: a node of these pods does not answer."""
    for pod in pods:
        silent = pod.node_silent or pod.node in draft.observation.lost_nodes
        if silent and not pod.over:
            draft.degraded("NodeSilent", f"node {pod.node} of pod {pod.name} does not answer")


def _is_silent(draft: Draft, pods: Sequence[PodView]) -> bool:
    """Whether worker 0 should have been heard for long: since it last was in this attempt; where it
    is ready and never was, since all workers had a node."""
    attempt: AttemptStatus = draft.get("current_attempt")
    if draft.heard is not None or attempt.admitted_time is None:
        return False
    now, advanced = draft.observation.now, _advanced(draft)
    if attempt.first_step_time is not None:
        return advanced is not None and now - advanced > _SILENCE
    if not any(pod.index == 0 and pod.ready for pod in pods):
        return False
    # While it starts it may say the same for as long as that takes.
    was_heard = advanced is not None and advanced > datetime.fromisoformat(attempt.created_time)
    startup = timedelta(seconds=seconds(draft.observation.run.spec.health_policy.startup_deadline))
    waited = now - datetime.fromisoformat(attempt.admitted_time)
    return waited > (max(startup, _SILENCE) if was_heard else _SILENCE)


def _advanced(draft: Draft) -> datetime | None:
    progress = draft.get("progress")
    if progress is None or progress.advanced_time is None:
        return None
    return datetime.fromisoformat(progress.advanced_time)


def _failure(draft: Draft, zero: PodView | None, reason: str, message: str) -> Failure:
    """Of a deadline that has passed: a worker on a node that is not heard from has not hung."""
    if zero is not None and (zero.node_silent or zero.node in draft.observation.lost_nodes):
        return node_lost(zero)
    return Failure(
        "charged",
        reason,
        message,
        "Hang",
        pod=zero.name if zero is not None else None,
        node=zero.node if zero is not None else None,
        progress=draft.heard,
    )
