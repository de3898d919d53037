"""What the cluster holds about one run, as frozen data: the input of `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_trainer.contract import LABEL_ATTEMPT, Progress, Termination
from daybreak_trainer.recipe import Recipe

_TRAINER = "trainer"
_INDEX = "batch.kubernetes.io/job-completion-index"


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

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> JobView:
        metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or [] if c["status"] == "True"}
        failed = conditions.get("Failed") or conditions.get("FailureTarget")
        return cls(
            name=metadata["name"],
            owner_uid=owner_uid(metadata),
            attempt=int((metadata.get("labels") or {}).get(LABEL_ATTEMPT, 0)),
            parallelism=int(spec.get("parallelism", 1)),
            deleting="deletionTimestamp" in metadata,
            failed=failed.get("message", "") if failed else None,
            worker_zero_done=_covers_zero(status.get("completedIndexes", "")),
            suspended=bool(spec.get("suspend")),
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
    """Why the trainer container does not start, such as ImagePullBackOff, with its message."""
    message: str
    """The pod's own status message, where kubelet or a node gave one."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> PodView:
        metadata, status = body["metadata"], body.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or [] if c["status"] == "True"}
        container: Mapping[str, Any] = next(
            (c for c in status.get("containerStatuses") or [] if c["name"] == _TRAINER), {}
        )
        state = container.get("state") or {}
        ended = state.get("terminated") or {}
        waiting = state.get("waiting") or {}
        labels = metadata.get("labels") or {}
        return cls(
            name=metadata["name"],
            attempt=int(labels.get(LABEL_ATTEMPT, 0)),
            index=int(labels.get(_INDEX, (metadata.get("annotations") or {}).get(_INDEX, 0))),
            phase=status.get("phase", "Pending"),
            ready="Ready" in conditions,
            deleting="deletionTimestamp" in metadata,
            disrupted=(conditions["DisruptionTarget"].get("message") or "disrupted")
            if "DisruptionTarget" in conditions
            else None,
            address=status.get("podIP"),
            exit_code=ended.get("exitCode"),
            finished_at=_time(ended.get("finishedAt")),
            termination=Termination.decode(ended.get("message")),
            waiting=f"{waiting.get('reason')}: {waiting.get('message', '')}"
            if waiting.get("message")
            else None,
            message=status.get("message", ""),
        )

    @property
    def over(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


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
    progress: Progress | None
    """What worker 0 said just now."""
    now: datetime


def owner_uid(metadata: Mapping[str, Any]) -> str | None:
    """The UID of the object that controls this one."""
    owners = metadata.get("ownerReferences") or []
    return next((o["uid"] for o in owners if o.get("controller")), None)


def _covers_zero(indexes: str) -> bool:
    """`completedIndexes` is such as "0-3,7"."""
    return indexes.split(",")[0].split("-")[0] == "0"
