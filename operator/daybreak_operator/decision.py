"""What `decide` answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.draft import Draft, EventNote
from daybreak_operator.observation import JobView, PodView, PreparationView
from daybreak_operator.restarts import told_of_endings


@dataclass(frozen=True)
class JobRef:
    """A Job to delete: that one, and no later one of its name."""

    name: str
    uid: str

    @classmethod
    def of(cls, job: JobView | PreparationView) -> JobRef:
        return cls(job.name, job.uid)


@dataclass(frozen=True)
class PodRef:
    """A pod to delete: that one, and no later one of its name."""

    name: str
    uid: str
    at_once: bool = False
    """Without a grace period: its node does not answer, or will not let it go."""

    @classmethod
    def of(cls, pod: PodView, *, at_once: bool = False) -> PodRef:
        return cls(pod.name, pod.uid, at_once)


@dataclass(frozen=True)
class Decision:
    status: TrainingRunStatus
    ensure: tuple[dict[str, Any], ...] = ()
    """Objects to create where they do not exist."""
    create_job: dict[str, Any] | None = None
    delete_jobs: tuple[JobRef, ...] = ()
    """In the foreground: SIGTERM, a checkpoint, and only then gone."""
    delete_pods: tuple[PodRef, ...] = ()
    delete_run: bool = False
    """Its time to live after its end is over."""
    events: tuple[EventNote, ...] = ()
    again_seconds: float | None = None
    """When to look again though nothing happens."""


def concluded(draft: Draft, again: float | None = None, **effects: Any) -> Decision:
    told_of_endings(draft)
    return Decision(draft.status(), events=tuple(draft.events), again_seconds=again, **effects)
