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
    "scheduling.volcano.sh/queue-name",
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


def _chosen(given: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: given[name] for name in names if name in given}
