"""Why an attempt ended, and what that means for the run. Pure.

The first pod that failed is the evidence; what follows it is collateral. What is asked, in order:
the worker's own termination message, its exit code, how its container ended, the pod's conditions
and its node. Reasons are CamelCase and stable: users write rules on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.policies import FailureClass, FailurePolicy, FailureRule
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.observation import JobView, PodView
from daybreak_operator.remedies import is_about_image, of_start
from daybreak_trainer.contract import (
    FINAL_EXIT_CODES,
    UNCHARGED_EXIT_CODES,
    CheckpointRef,
    ExitCode,
    Progress,
)

Verdict = Literal["final", "charged", "uncharged"]
_PEER_LOST = "PeerLost"
_KILLED = 137
_CRASHES = frozenset({134, 135, 136, 139})
_NOT_FOUND = "ContainerStatusUnknown"
"""How a container ended that a kubelet does not find any more: its node was down for a while."""
_NODE_GONE = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
_CLASS_OF_CODE: dict[int, FailureClass] = {
    ExitCode.BAD_RECIPE: "User",
    ExitCode.BAD_DATA: "Data",
    ExitCode.HUNG: "Hang",
    ExitCode.NON_FINITE: "User",
    ExitCode.DO_NOT_RESTART: "User",
    ExitCode.CHECKPOINTED: "Interruption",
    ExitCode.TERMINATED: "Interruption",
    _KILLED: "Infrastructure",
}
_BLAMES_NODE: frozenset[FailureClass] = frozenset({"Infrastructure"})
_BAD_DEVICE = "BadDevice"
_FORGOTTEN = "ContainerStatusUnknown"
"""A kubelet knows the pod and finds no container: its node was started again."""
_REJECTED = "UnexpectedAdmissionError"
"""By a kubelet that could not give a pod the devices it was promised."""


@dataclass(frozen=True)
class Failure:
    verdict: Verdict
    reason: str
    message: str
    kind: FailureClass = "Unknown"
    exit_code: int | None = None
    pod: str | None = None
    node: str | None = None
    blames_node: bool = False
    """The node counts as suspect."""
    avoid_node: bool = False
    """A user's rule says that this once is enough."""
    rule: str | None = None
    rank: int | None = None
    step: int = 0
    ended_at: datetime | None = None
    conditions: frozenset[str] = frozenset()
    """Of the pod, those that are true: user rules may name them."""
    progress: Progress | None = None
    checkpoint: CheckpointRef | None = None


def classify(
    job: JobView, pods: Sequence[PodView], lost_nodes: frozenset[str] = frozenset()
) -> Failure | None:
    """The cause of an attempt's end, or None while there is none or it is not clear yet.

    The first failed pod tells, except where it only lost its peers: then one that says more does,
    and while others are still ending, they are waited for. A pod that is being taken away, and
    whose node does not answer, will never tell more.
    """
    silent = [p for p in pods if not p.over and (p.node_silent or p.node in lost_nodes)]
    if gone := [p for p in silent if p.deleting or p.disrupted is not None]:
        return node_lost(min(gone, key=lambda pod: pod.index))
    failed = [pod for pod in pods if pod.phase == "Failed" or pod.exit_code not in (None, 0)]
    if not failed:
        return _job_failure(job) if not any(not pod.over for pod in pods) else None
    telling = [pod for pod in failed if not _lost_peers(pod)]
    if not telling and any(not pod.over and pod not in silent for pod in pods):
        return None
    if not telling and silent:
        return node_lost(silent[0])
    if not telling and len({pod.index for pod in pods}) < job.parallelism:
        # Who had failed by itself would still be there.
        return _pods_lost("a worker's pod was removed, and the others lost it")
    return _of_pod(min(telling or failed, key=_end), lost_nodes)


def stuck(
    pods: Sequence[PodView], spec: TrainingRunSpec, since: datetime, now: datetime
) -> Failure | None:
    """A worker whose container will not start: its image, a volume, a setting. `since` is when its
    attempt began, by the clock of `now`."""
    deadline = spec.health_policy.image_pull_deadline
    limit = timedelta(seconds=seconds(deadline))
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.stuck and pod.scheduled_at and now - max(since, pod.scheduled_at) >= limit:
            return Failure(
                "final",
                "ImagePullFailed" if is_about_image(pod) else "ContainerNotStarted",
                f"pod {pod.name} could not start for {deadline} (healthPolicy.imagePullDeadline); "
                f"in a new run {of_start(spec, pod)}: {pod.waiting}",
                "User",
                pod=pod.name,
                node=pod.node,
            )
    return None


def ruled(failure: Failure, policy: FailurePolicy) -> Failure:
    """With the verdict of the first of the user's rules that matches."""
    for rule in policy.rules:
        if _matches(rule, failure):
            verdict: Verdict = {
                "FailRun": "final",
                "Restart": "charged",
                "RestartUncharged": "uncharged",
            }[rule.action]  # type: ignore[assignment]
            return replace(
                failure,
                verdict=verdict,
                rule=rule.name,
                avoid_node=rule.avoid_node,
            )
    return failure


def _matches(rule: FailureRule, failure: Failure) -> bool:
    if rule.on_exit_codes is not None:
        if failure.exit_code is None:
            return False
        listed = failure.exit_code in rule.on_exit_codes.values
        return listed == (rule.on_exit_codes.operator == "In")
    if rule.on_reasons is not None:
        return failure.reason in rule.on_reasons
    if rule.on_classes is not None:
        return failure.kind in rule.on_classes
    return bool(failure.conditions & set(rule.on_pod_conditions or ()))


def _end(pod: PodView) -> tuple[bool, datetime, bool, int]:
    """Sorts what a new attempt cannot cure first, whatever clock its node has, and then by time, in
    whole seconds: of pods that ended in the same one, those that were only told to stop come last,
    for the failure of another is what stops them."""
    end = pod.finished_at or datetime.max.replace(tzinfo=UTC)
    told_to_stop = pod.exit_code in UNCHARGED_EXIT_CODES
    return (pod.exit_code not in FINAL_EXIT_CODES, end, told_to_stop, pod.index)


def _lost_peers(pod: PodView) -> bool:
    return pod.termination is not None and pod.termination.reason == _PEER_LOST


def _job_failure(job: JobView) -> Failure | None:
    if job.failed is None:
        return None
    return _pods_lost(job.failed or "the attempt's pods are gone")


def _pods_lost(message: str) -> Failure:
    return Failure("uncharged", "PodsLost", message, "Interruption")


def node_lost(pod: PodView) -> Failure:
    """Of a pod whose node is not heard from: the run's attempt is over, free of charge."""
    return Failure(
        "uncharged",
        "NodeLost",
        f"node {pod.node} of pod {pod.name} does not answer; the attempt ends and the next resumes "
        "from the last commit",
        "Infrastructure",
        pod=pod.name,
        node=pod.node,
        blames_node=True,
        conditions=frozenset(pod.conditions),
    )


def _of_pod(pod: PodView, lost_nodes: frozenset[str]) -> Failure:
    told, code = pod.termination, pod.exit_code
    reason, kind = _named(pod, lost_nodes)
    ended = f"exit code {code}" if code is not None else "no exit code"
    message = pod.disrupted or pod.message or f"pod {pod.name} ended with {ended}"
    if reason == "OOMKilled":
        message = (
            f"pod {pod.name} used more memory than its limit: raise workers.resources.limits.memory"
            ", or set compute.deviceBatchSize or compute.activationCheckpointing"
        )
    elif reason == "GracePeriodExceeded":
        message = (
            f"pod {pod.name} was deleted and killed before it had committed: raise "
            "terminationGracePeriod above the time of a commit"
        )
    elif told is not None:
        message = told.message
    return Failure(
        verdict=_verdict(code, reason, kind, pod.disrupted is not None),
        reason=reason,
        message=message,
        kind=kind,
        exit_code=code,
        pod=pod.name,
        node=pod.node,
        blames_node=(kind in _BLAMES_NODE and code != _KILLED) or reason == _BAD_DEVICE,
        rank=told.rank if told else None,
        step=told.step if told else 0,
        ended_at=pod.finished_at,
        conditions=frozenset(pod.conditions),
        # Another's is what its launcher began with: it has no rank that counts.
        progress=told.progress if told and pod.index == 0 else None,
        checkpoint=told.checkpoint if told else None,
    )


def _named(pod: PodView, lost_nodes: frozenset[str]) -> tuple[str, FailureClass]:
    told, code = pod.termination, pod.exit_code
    disruption = pod.conditions.get("DisruptionTarget", "")
    if pod.ended_as == "OOMKilled":
        return "OOMKilled", "OutOfMemory"
    if told is not None:
        return told.reason, _class_of(code, told.reason)
    gone = disruption in _NODE_GONE or pod.ended_as == _FORGOTTEN or pod.reason == "NodeLost"
    if pod.node in lost_nodes or gone:
        return "NodeLost", "Infrastructure"
    if pod.disrupted is not None or pod.reason in ("Evicted", "Preempting", "Shutdown"):
        preempted = disruption == "PreemptionByScheduler"
        return ("Preempted" if preempted else pod.reason or "Disrupted"), "Interruption"
    if pod.deleting and code == _KILLED:
        return "GracePeriodExceeded", "Interruption"
    if pod.ended_as == _NOT_FOUND:
        return "NodeLost", "Infrastructure"
    if pod.reason == _REJECTED:
        return pod.reason, "Infrastructure"
    return "WorkerFailed", _class_of(code, "")


def _class_of(code: int | None, reason: str) -> FailureClass:
    if reason == _BAD_DEVICE or code in _CRASHES:
        return "Infrastructure"
    if reason in ("OOMKilled", "OutOfMemory", "DeviceOutOfMemory"):
        return "OutOfMemory"
    if code is None:
        return "Interruption"
    return _CLASS_OF_CODE.get(code, "Unknown")


def _verdict(code: int | None, reason: str, kind: FailureClass, disrupted: bool) -> Verdict:
    if code in FINAL_EXIT_CODES:
        return "final"
    if disrupted or kind == "Interruption" or reason == "NodeLost":
        return "uncharged"
    if code is None or code in UNCHARGED_EXIT_CODES:
        return "uncharged"
    return "charged"
