"""What of a run reaches the cluster's queues: Kueue, which reads the Job, and Volcano, which reads
the Job and its pods. Pure. Labels and annotations are all there is: neither has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daybreak_operator.api.run import TrainingRun

_LONGEST = 512
_VOLCANO = "volcano"
_GANG_SIZE = "scheduling.volcano.sh/group-min-member"
_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"

# Of Kueue's other labels none is a user's to set on a Job that is made anew for each attempt.
_JOB_LABELS = (
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/priority-class",
    "kueue.x-k8s.io/max-exec-time-seconds",
)
_JOB_ANNOTATION_PREFIX = "provreq.kueue.x-k8s.io/"
_POD_ANNOTATIONS = (
    "kueue.x-k8s.io/podset-required-topology",
    "kueue.x-k8s.io/podset-preferred-topology",
    "kueue.x-k8s.io/podset-unconstrained-topology",
    _VOLCANO_QUEUE,
)
_RESIZING = {
    "kueue.x-k8s.io/job-min-parallelism": "partial admission",
    "kueue.x-k8s.io/elastic-job": "resizing an admitted Job",
}


def refusal(run: TrainingRun) -> str | None:
    """Why the run cannot be queued as it asks; None where it can.

    With partial admission or workload slices Kueue chooses the number of pods. The workers of an
    attempt know their number from the start, and would wait for some that never come.
    """
    for name, what in _RESIZING.items():
        if run.annotations.get(name, "false") != "false":
            return (
                f"metadata.annotations: {name} asks Kueue for {what}, which is not supported: an "
                "attempt has spec.workers.nodes workers or does not start. Remove the annotation, "
                "and change spec.workers.nodes (kubectl scale) to train on fewer."
            )
    return None


def held_back(workloads: Sequence[Mapping[str, Any]]) -> str | None:
    """Why Kueue has not admitted a Job, in the words of its Workload; None where it has said
    nothing yet."""
    for workload in workloads:
        conditions = (workload.get("status") or {}).get("conditions") or []
        for kind in ("QuotaReserved", "Admitted"):
            for condition in conditions:
                if (condition["type"], condition["status"]) == (kind, "False"):
                    return str(condition.get("message", ""))[:_LONGEST] or None
    return None


def no_room(run: TrainingRun, job_uid: str) -> str:
    """What there is to say of workers that Volcano has no nodes for, and nothing of others.

    Of a gang that it does not try to place, its conditions only say so; which resource is short is
    said in an Event, and Events are not read here.
    """
    if _scheduler(run) != _VOLCANO:
        return ""
    return (
        f"Volcano has no room for all of them and starts all or none: `kubectl describe "
        f"podgroups.scheduling.volcano.sh podgroup-{job_uid}` says which resource is short, of the "
        f"cluster's or of Queue {_queue(run)}'s; "
    )


def unheard(run: TrainingRun) -> str | None:
    """Why workers may wait that no scheduler has said anything of; None where it is Kubernetes'
    own, which speaks of every pod."""
    scheduler = _scheduler(run)
    if scheduler is None:
        return None
    queue = f", or there is no Queue {_queue(run)}" if scheduler == _VOLCANO else ""
    return (
        f"no worker has a node, and scheduler {scheduler} has not looked at them: where that stays "
        f"so, it does not run{queue}"
    )


def job_labels(run: TrainingRun) -> dict[str, str]:
    """Kueue's labels, for the Job."""
    return _chosen(run.labels, _JOB_LABELS)


def job_annotations(run: TrainingRun, pod_spec: Mapping[str, Any], nodes: int) -> dict[str, str]:
    """Parameters of Kueue's ProvisioningRequest; and where Volcano is to schedule the pods, the
    size of the gang, which it would take for 1."""
    found = {k: v for k, v in run.annotations.items() if k.startswith(_JOB_ANNOTATION_PREFIX)}
    gang = {_GANG_SIZE: str(nodes)} if pod_spec.get("schedulerName") == _VOLCANO else {}
    return found | gang


def pod_annotations(run: TrainingRun) -> dict[str, str]:
    """Kueue's topology request and Volcano's queue, both of which are read from the pods."""
    return _chosen(run.annotations, _POD_ANNOTATIONS)


def _scheduler(run: TrainingRun) -> str | None:
    return (run.spec.workers.template.get("spec") or {}).get("schedulerName")


def _queue(run: TrainingRun) -> str:
    return run.annotations.get(_VOLCANO_QUEUE, "default")


def _chosen(given: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: given[name] for name in names if name in given}
