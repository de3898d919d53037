"""The objects of a simulated cluster, kept as small records and shown as the API server would show
them (`body`), so what the operator parses is parsed here too. Clocks of nodes may be wrong
(`skew`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from simulated_training import Exit, Gang, Preparation

from daybreak_operator.observation import prepares
from daybreak_trainer.contract import LABEL_RUN

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE, NAME = "n", "r"
INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"
NODE_SILENT_SECONDS = 40
Key = tuple[str, str]
"""Namespace and name of a run."""


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    return moment(seconds).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class Node:
    name: str
    down_since: float | None = None

    def silent(self, now: float) -> bool:
        return self.down_since is not None and now - self.down_since >= NODE_SILENT_SECONDS

    def body(self, now: float) -> dict[str, Any]:
        ready = "Unknown" if self.silent(now) else "True"
        return {
            "metadata": {"name": self.name, "labels": {}},
            "status": {
                "allocatable": {"pods": "1"},
                "conditions": [{"type": "Ready", "status": ready}],
            },
        }


@dataclass
class Job:
    manifest: dict[str, Any]
    uid: str
    gang: Gang | Preparation
    suspended: bool = False
    suspended_at: float = 0.0
    deleting: bool = False
    gone: bool = False
    failed: str | None = None
    completed: set[int] = field(default_factory=set)
    retries: Counter[int] = field(default_factory=Counter)
    """Of a Job that prepares data: pods that failed, by index."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def namespace(self) -> str:
        return str(self.manifest["metadata"]["namespace"])

    @property
    def run(self) -> Key:
        """By its label."""
        return self.namespace, str(self.manifest["metadata"]["labels"][LABEL_RUN])

    @property
    def prepares(self) -> bool:
        return prepares(self.manifest["metadata"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def owner_uid(self) -> str:
        return str(self.manifest["metadata"]["ownerReferences"][0]["uid"])

    @property
    def size(self) -> int:
        return int(self.manifest["spec"]["parallelism"])

    @property
    def finished(self) -> bool:
        return self.failed is not None or len(self.completed) == self.size

    def body(self) -> dict[str, Any]:
        metadata = {**self.manifest["metadata"], "uid": self.uid}
        if self.deleting:
            metadata["deletionTimestamp"] = stamp(0)
        conditions = []
        if self.suspended:
            since = stamp(self.suspended_at)
            conditions.append({"type": "Suspended", "status": "True", "lastTransitionTime": since})
        if self.failed is not None:
            conditions.append({"type": "Failed", "status": "True", "message": self.failed})
        elif self.finished:
            conditions.append({"type": "Complete", "status": "True"})
        return {
            "metadata": metadata,
            "spec": {
                "parallelism": self.size,
                "completions": self.size,
                "suspend": self.suspended,
            },
            "status": {
                "conditions": conditions,
                "succeeded": len(self.completed),
                "completedIndexes": ",".join(str(index) for index in sorted(self.completed)),
            },
        }


@dataclass
class Pod:
    job: Job
    index: int
    uid: str
    created_at: float
    owned: bool = True
    node: Node | None = None
    scheduled_at: float | None = None
    started_at: float | None = None
    deleted_at: float | None = None
    exit: Exit | None = None
    finished_at: float | None = None
    disruption: str | None = None
    silent: bool = False
    pulling: bool = False
    counted: bool = False
    """Its end, by the Job that it prepares data for."""

    @property
    def key(self) -> str:
        return f"{self.job.namespace}/{self.name}"

    @property
    def name(self) -> str:
        # What failed stays beside what takes its place.
        more = f"-{self.uid}" if self.job.prepares else ""
        return f"{self.job.name}-{self.index}{more}"

    @property
    def container(self) -> str:
        return "prepare" if self.job.prepares else "trainer"

    @property
    def over(self) -> bool:
        return self.exit is not None

    @property
    def runs(self) -> bool:
        """Its processes do: not so on a node that is down."""
        return (
            self.started_at is not None
            and self.exit is None
            and self.node is not None
            and self.node.down_since is None
        )

    def end(self, how: Exit, now: float) -> None:
        if self.exit is None:
            self.exit, self.finished_at = how, now

    def body(self, skew: float, grace: float) -> dict[str, Any]:
        manifest = self.job.manifest["metadata"]
        owner = {"kind": "Job", "name": self.job.name, "uid": self.job.uid, "controller": True}
        metadata = {
            "name": self.name,
            "namespace": self.job.namespace,
            "uid": self.uid,
            "labels": {**manifest["labels"], INDEX: str(self.index), JOB_NAME: self.job.name},
            "ownerReferences": [owner] if self.owned else [],
        }
        if self.deleted_at is not None:
            metadata["deletionTimestamp"] = stamp(self.deleted_at + grace)
        spec = {"nodeName": self.node.name} if self.node else {}
        return {"metadata": metadata, "spec": spec, "status": self._status(skew)}

    def _status(self, skew: float) -> dict[str, Any]:
        started = self.started_at is not None
        phase = "Running" if started else "Pending"
        if self.exit is not None:
            phase = "Succeeded" if self.exit.code == 0 else "Failed"
        live = started and self.exit is None
        conditions = [
            {
                "type": "PodScheduled",
                "status": "True" if self.node else "False",
                "message": "" if self.node else "0 nodes are available",
                "lastTransitionTime": stamp(self.scheduled_at or 0),
            },
            {"type": "Ready", "status": "True" if live and not self.silent else "False"},
            {"type": "ContainersReady", "status": "True" if live else "False"},
        ]
        if self.disruption is not None:
            conditions.append(
                {"type": "DisruptionTarget", "status": "True", "reason": self.disruption}
            )
        state: dict[str, Any] = {"running": {}} if live else {"waiting": {}}
        if self.pulling and not started:
            state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        if self.exit is not None and self.exit.code is not None:
            state = {
                "terminated": {
                    "exitCode": self.exit.code,
                    "reason": self.exit.reason,
                    "finishedAt": stamp((self.finished_at or 0) + skew),
                    "message": self.exit.message,
                }
            }
        return {
            "phase": phase,
            "podIP": self.uid if self.node else None,
            "conditions": conditions,
            "containerStatuses": [{"name": self.container, "state": state}] if self.node else [],
        }
