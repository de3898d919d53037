"""What the cluster holds about one run, as frozen data: the input of `decide`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_trainer.contract import (
    LABEL_ATTEMPT,
    LABEL_ROLE,
    ROLE_PREPARE,
    Progress,
    Termination,
)
from daybreak_trainer.recipe import Recipe

TRAINER = "trainer"
_MAIN = (TRAINER, "prepare")
"""Names of the container that a pod is there for."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label of a Job's pods; orphans keep it."""
WORKERS_HASH = "daybreak.dev/workers-hash"
"""Annotation of an attempt's Job: of what in the spec its workers are made by."""
LIMITS_HASH = "daybreak.dev/limits-hash"
"""The same, of the limits that they are told."""
_NUMBER = re.compile(r"[0-9]{1,9}\Z", re.ASCII)
IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
"""Of a container that waits for its image."""
_STUCK = IMAGE_REASONS | {"CreateContainerConfigError", "CreateContainerError"}
"""Reasons of a container that waits which time alone does not cure."""


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


@dataclass(frozen=True)
class JobView:
    name: str
    owner_uid: str | None
    attempt: int
    parallelism: int
    deleting: bool
    failed: str | None
    """Message of the Failed condition."""
    worker_zero_done: bool
    suspended: bool
    """By a queue such as Kueue."""
    suspended_at: datetime | None = None
    uid: str = ""
    workers_hash: str = ""
    limits_hash: str = ""
    """Empty for one that an earlier version has made."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> JobView:
        metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
        conditions = true_conditions(status)
        failed = conditions.get("Failed") or conditions.get("FailureTarget")
        annotations = metadata.get("annotations") or {}
        return cls(
            name=metadata["name"],
            owner_uid=owner_uid(metadata),
            attempt=_number((metadata.get("labels") or {}).get(LABEL_ATTEMPT)),
            parallelism=int(spec.get("parallelism", 1)),
            deleting="deletionTimestamp" in metadata,
            failed=failed.get("message", "") if failed else None,
            worker_zero_done=_covers_zero(status.get("completedIndexes", "")),
            suspended=bool(spec.get("suspend")),
            suspended_at=_time(conditions.get("Suspended", {}).get("lastTransitionTime")),
            uid=metadata["uid"],
            workers_hash=annotations.get(WORKERS_HASH, ""),
            limits_hash=annotations.get(LIMITS_HASH, ""),
        )


@dataclass(frozen=True)
class PodView:
    name: str
    attempt: int
    index: int
    phase: str
    ready: bool
    deleting: bool
    disrupted: str | None
    """Message of the DisruptionTarget condition: evicted, preempted, node lost."""
    address: str | None
    exit_code: int | None
    """Of the trainer container, once it ended."""
    finished_at: datetime | None
    termination: Termination | None
    waiting: str | None
    """Why a container does not start, such as ImagePullBackOff, with its message."""
    message: str
    """The pod's own status message, where kubelet or a node gave one."""
    uid: str = ""
    node: str | None = None
    reason: str = ""
    """The pod's own status reason, such as Evicted."""
    ended_as: str = ""
    """Reason of the trainer container's end, such as OOMKilled."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Type → reason of those that are true."""
    scheduled_at: datetime | None = None
    """When it got a node."""
    unschedulable: str | None = None
    """Why it has none, by the scheduler."""
    gone_after: datetime | None = None
    """When a node that answers would have ended it: the end of its grace period."""
    node_silent: bool = False
    """The node controller does not hear from its node."""
    waits: str = ""
    """Name of the container that does not start."""
    stuck: bool = False
    """What it waits for, time alone does not cure: an image, a volume, a wrong setting."""
    prepares: bool = False
    """It prepares the data, and belongs to no attempt."""
    stray: bool = False
    """Its Job is gone, or a former run's of the same name: waited for, and none of an attempt's
    workers."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> PodView:
        metadata, status = body["metadata"], body.get("status") or {}
        conditions = true_conditions(status)
        containers = status.get("containerStatuses") or []
        trainer: Mapping[str, Any] = next((c for c in containers if c["name"] in _MAIN), {})
        ended = (trainer.get("state") or {}).get("terminated") or {}
        waits, waiting = _waiting([*(status.get("initContainerStatuses") or []), *containers])
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        disruption = conditions.get("DisruptionTarget")
        return cls(
            name=metadata["name"],
            attempt=_number(labels.get(LABEL_ATTEMPT)),
            index=_number(labels.get(COMPLETION_INDEX, annotations.get(COMPLETION_INDEX))),
            phase=status.get("phase", "Pending"),
            ready="Ready" in conditions,
            deleting="deletionTimestamp" in metadata,
            disrupted=(disruption.get("message") or "disrupted") if disruption else None,
            address=status.get("podIP"),
            exit_code=ended.get("exitCode"),
            finished_at=_time(ended.get("finishedAt")),
            termination=Termination.decode(ended.get("message")),
            waiting=f"{waiting.get('reason')}: {waiting.get('message', '')}"
            if waiting.get("message")
            else None,
            message=status.get("message", ""),
            uid=metadata["uid"],
            node=(body.get("spec") or {}).get("nodeName"),
            reason=status.get("reason", ""),
            ended_as=ended.get("reason", ""),
            conditions={kind: c.get("reason", "") for kind, c in conditions.items()},
            scheduled_at=_time(conditions.get("PodScheduled", {}).get("lastTransitionTime")),
            unschedulable=_unschedulable(status),
            gone_after=_time(metadata.get("deletionTimestamp")),
            node_silent=_node_silent(status),
            waits=waits,
            stuck=waiting.get("reason") in _STUCK,
            prepares=prepares(metadata),
        )

    @property
    def over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class PreparationView:
    """The Job of `data.prepare`."""

    name: str
    done: bool
    failed: str | None
    """Why it failed, in a sentence."""
    deleting: bool = False
    uid: str = ""
    suspended: bool = False
    """By a queue such as Kueue."""
    lacks_pods: bool = False
    """Some of those that are still to do their part are not there."""

    @classmethod
    def of(cls, body: Mapping[str, Any], pods: Sequence[PodView]) -> PreparationView:
        """Of its Job, and of its pods that are still known."""
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        conditions = true_conditions(status)
        failed = conditions.get("Failed") or conditions.get("FailureTarget")
        words = [p for p in pods if p.prepares and p.phase == "Failed" and p.termination]
        first = min(words, key=lambda pod: str(pod.finished_at), default=None)
        sentence = first.termination.message if first and first.termination else None
        ours = [pod for pod in pods if pod.prepares and not pod.stray]
        alive = sum(not pod.over for pod in ours)
        # The Job counts a pod a while after its end.
        ended_well = len({pod.index for pod in ours if pod.phase == "Succeeded"})
        done = max(int(status.get("succeeded", 0)), ended_well)
        return cls(
            name=metadata["name"],
            done="Complete" in conditions,
            failed=(sentence or failed.get("message", "its pods failed")) if failed else None,
            deleting="deletionTimestamp" in metadata,
            uid=metadata["uid"],
            suspended=bool(spec.get("suspend")),
            lacks_pods=alive + done < int(spec.get("completions", 0)),
        )

    @property
    def at_work(self) -> bool:
        return not (self.done or self.failed is not None or self.deleting)


@dataclass(frozen=True)
class FixedRecipe:
    """A run's recipe, word for word. It is resolved once, for the first attempt, and handed on: a
    later version of Daybreak may resolve the same preset to another one."""

    hash: str
    text: str

    @classmethod
    def of(cls, recipe: Recipe) -> FixedRecipe:
        return cls(recipe.hash, recipe.to_json())


@dataclass(frozen=True)
class Observation:
    run: TrainingRun
    recipe: FixedRecipe | None
    recipe_problem: str | None
    """Why there is no recipe; names the field."""
    jobs: tuple[JobView, ...]
    pods: tuple[PodView, ...]
    missing: tuple[str, ...]
    """One sentence for each object the spec names that does not exist."""
    foreign: tuple[str, ...]
    """One sentence for each object that has a child's name and is not ours."""
    refused: tuple[str, ...] = field(default=(), kw_only=True)
    """One sentence for each child that the API server would not have."""
    progress: Progress | None
    """What worker 0 said just now."""
    now: datetime
    preparation: PreparationView | None = None
    lost_nodes: frozenset[str] = frozenset()
    """Nodes known not to answer or not to exist, where the operator may read nodes."""
    free_nodes: int | None = None
    """Ready nodes that match the run's pods and have free devices for one more; None: not known."""
    queue_says: str | None = None
    """Why Kueue holds the Job back; None where nothing is known of it."""


def _number(text: str | None) -> int:
    """Of a label or annotation; 0, which no attempt has, where it is no number: any pod may carry a
    run's label."""
    return int(text) if text is not None and _NUMBER.match(text) else 0


def owner_uid(metadata: Mapping[str, Any]) -> str | None:
    """The UID of the object that controls this one."""
    owners = metadata.get("ownerReferences") or []
    return next((o["uid"] for o in owners if o.get("controller")), None)


def true_conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {c["type"]: c for c in status.get("conditions") or [] if c["status"] == "True"}


def prepares(metadata: Mapping[str, Any]) -> bool:
    """Whether a Job or pod is of `data.prepare`."""
    return (metadata.get("labels") or {}).get(LABEL_ROLE) == ROLE_PREPARE


def _waiting(containers: list[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The first container that waits with a message, and what is said of it."""
    states = ((c["name"], (c.get("state") or {}).get("waiting") or {}) for c in containers)
    return next(((name, said) for name, said in states if said.get("message")), ("", {}))


_ROOM_FOR_IT = "Schedulable"
"""Volcano's reason for a pod that would have a node if the rest of its gang had."""


def _unschedulable(status: Mapping[str, Any]) -> str | None:
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            if condition.get("reason") == _ROOM_FOR_IT:
                return None
            return condition.get("message") or condition.get("reason") or "it has no node"
    return None


def _node_silent(status: Mapping[str, Any]) -> bool:
    """The node controller makes pods unready of a node that it does not hear from, and leaves the
    rest of their status as the kubelet last wrote it; a kubelet never writes the one without the
    other, but for readiness gates. A pod that had not started was unready before; that its node is
    silent shows when it is taken away for it."""
    found = {c["type"]: c for c in status.get("conditions") or []}
    if found.get("DisruptionTarget", {}).get("reason") == "DeletionByTaintManager":
        return True
    ready, containers = found.get("Ready", {}), found.get("ContainersReady", {})
    unready = ready.get("status", "True") != "True"
    gated = ready.get("reason") == "ReadinessGatesNotReady"
    return unready and not gated and containers.get("status") == "True"


def _covers_zero(indexes: str) -> bool:
    """`completedIndexes` is such as "0-3,7"."""
    return indexes.split(",")[0].split("-")[0] == "0"
