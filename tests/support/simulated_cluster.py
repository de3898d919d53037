"""A cluster in memory: what the Job controller, the scheduler, the node controller, kubelets, the
garbage collector and a queue such as Kueue would make of one run's objects, second by second.

Objects are kept as small records and shown as the API server would show them (`body`), so what the
operator parses is parsed here too. Clocks of nodes and workers may be wrong (`skew`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from simulated_training import Exit, Gang, Storage

from daybreak_operator.capacity import Inventory

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE, NAME = "n", "r"
LABEL_RUN, LABEL_ATTEMPT = "daybreak.dev/run", "daybreak.dev/attempt"
INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"
NODE_SILENT_SECONDS, TOLERATION_SECONDS = 40, 60
START_SECONDS, PULL_SECONDS = 3, 2


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
    gang: Gang
    suspended: bool = False
    deleting: bool = False
    gone: bool = False
    failed: str | None = None
    completed: set[int] = field(default_factory=set)

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
        if self.failed is not None:
            conditions.append({"type": "Failed", "status": "True", "message": self.failed})
        return {
            "metadata": metadata,
            "spec": {"parallelism": self.size, "suspend": self.suspended},
            "status": {
                "conditions": conditions,
                "completedIndexes": ",".join(str(index) for index in sorted(self.completed)),
            },
        }


@dataclass
class Pod:
    job: Job
    index: int
    uid: str
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

    @property
    def name(self) -> str:
        return f"{self.job.name}-{self.index}"

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
            "namespace": NAMESPACE,
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
            "containerStatuses": [{"name": "trainer", "state": state}] if self.node else [],
        }


@dataclass
class SimulatedCluster:
    """One namespace, and one name that runs may have one after the other."""

    nodes: dict[str, Node]
    queue: bool = False
    """Jobs are made suspended and admitted when there are nodes for all of their pods."""
    admits: bool = True
    skew: float = 0.0
    grace: float = 30.0
    image_exists: bool = True
    readable_nodes: bool = True
    now: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    run_uid: str | None = None
    """Of the run that exists."""
    storage: Storage = field(default_factory=Storage)
    unplaced_at: float | None = None
    """When a pod last found no node."""
    held_seconds: float = 0.0
    _admitted: dict[str, Job] = field(default_factory=dict)
    """By UID: Jobs whose pods all had a node at some time."""
    device_seconds: float = 0.0
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def unique(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    # --- what clients do --------------------------------------------------------------------------

    def create_job(self, manifest: dict[str, Any]) -> None:
        nodes = manifest["spec"]["parallelism"]
        attempt = int(manifest["metadata"]["labels"][LABEL_ATTEMPT])
        owner = manifest["metadata"]["ownerReferences"][0]["uid"]
        gang = Gang(owner, attempt, nodes, self.storage, self.skew)
        job = Job(manifest, self.unique("job"), gang, suspended=self.queue)
        self.jobs[job.name] = job

    def delete_job(self, name: str, propagation: str = "Foreground") -> None:
        job = self.jobs.get(name)
        if job is None:
            return
        if propagation == "Foreground":
            job.deleting = True
            return
        job.gone = True
        del self.jobs[name]
        if propagation == "Orphan":
            for pod in self.of(job):
                pod.owned = False

    def delete_pod(self, name: str, *, at_once: bool = False) -> None:
        pod = self.pods.get(name)
        if pod is None:
            return
        if at_once:
            self._remove(pod)
        elif pod.deleted_at is None:
            pod.deleted_at = self.now

    def of(self, job: Job) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.job is job]

    # --- what controllers do ----------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self._collect_garbage()
        self._watch_nodes()
        for job in list(self.jobs.values()):
            self._control(job)
        self._admit()
        self._schedule()
        for pod in list(self.pods.values()):
            self._run_pod(pod)
        gangs = {id(pod.job): pod.job for pod in self.pods.values()}
        steppers = 0
        for job in gangs.values():
            steppers += job.gang.advance(self.of(job), self.now, seconds)
        assert steppers <= 1, "two attempts train at once"
        self._measure(seconds)

    def _collect_garbage(self) -> None:
        for job in list(self.jobs.values()):
            if job.owner_uid != self.run_uid:
                self.delete_job(job.name, "Background")
        for pod in list(self.pods.values()):
            if pod.over and (pod.deleted_at is not None or (pod.job.gone and pod.owned)):
                self._remove(pod)
            elif pod.owned and pod.job.gone:
                self.delete_pod(pod.name)
        for name, body in list(self.configs.items()):
            if body["metadata"]["ownerReferences"][0]["uid"] != self.run_uid:
                del self.configs[name]

    def _watch_nodes(self) -> None:
        for pod in self.pods.values():
            if pod.node is None or pod.over:
                continue
            pod.silent = pod.node.silent(self.now)
            since = pod.node.down_since
            limit = NODE_SILENT_SECONDS + TOLERATION_SECONDS
            if since is not None and self.now - since >= limit and pod.deleted_at is None:
                pod.deleted_at, pod.disruption = self.now, "DeletionByTaintManager"

    def _control(self, job: Job) -> None:
        pods = self.of(job)
        if job.deleting:
            for pod in pods:
                self.delete_pod(pod.name)
            if not pods:
                job.gone = True
                del self.jobs[job.name]
            return
        job.completed |= {pod.index for pod in pods if pod.exit and pod.exit.code == 0}
        if any(pod.exit is not None and pod.exit.code != 0 for pod in pods) and not job.suspended:
            job.failed = job.failed or "a pod failed"
        if job.failed is not None or job.suspended:
            for pod in pods:
                if not pod.over:
                    self.delete_pod(pod.name)
            return
        there = {pod.index for pod in pods} | job.completed
        for index in range(job.size):
            if index not in there:
                pod = Pod(job, index, self.unique("pod"))
                self.pods[pod.name] = pod

    def _remove(self, pod: Pod) -> None:
        del self.pods[pod.name]
        done = pod.exit is not None and pod.exit.code == 0
        if not done and not pod.job.suspended and not pod.job.deleting:
            pod.job.failed = pod.job.failed or "a pod is gone"
        if pod.exit is None:
            pod.end(Exit(None), self.now)

    def _admit(self) -> None:
        for job in self.jobs.values():
            free = sum(not self._taken(node) for node in self.nodes.values() if self._up(node))
            if job.suspended and not job.deleting and self.admits and not self.of(job):
                job.suspended = free < job.size

    def _up(self, node: Node) -> bool:
        return not node.silent(self.now)

    def _taken(self, node: Node) -> bool:
        return any(pod.node is node and not pod.over for pod in self.pods.values())

    def _schedule(self) -> None:
        for pod in self.pods.values():
            if pod.node is not None or pod.deleted_at is not None or pod.over:
                continue
            avoided = _avoided(pod.job.manifest)
            free = [n for n in self.nodes.values() if self._up(n) and not self._taken(n)]
            if fit := [node for node in free if node.name not in avoided]:
                pod.node, pod.scheduled_at = fit[0], self.now
            else:
                self.unplaced_at = self.now

    def _run_pod(self, pod: Pod) -> None:
        if pod.node is None or pod.node.down_since is not None or pod.over:
            if pod.node is None and pod.deleted_at is not None and not pod.over:
                self._remove(pod)
            return
        if pod.started_at is None:
            if pod.deleted_at is not None:
                self._remove(pod)
            elif self.now - (pod.scheduled_at or 0) >= START_SECONDS:
                pod.pulling = not self.image_exists
                if self.image_exists:
                    pod.started_at = self.now

    def begin_count(self) -> None:
        """Of what another run holds, from now on."""
        self.held_seconds = self.device_seconds = 0.0
        self._admitted = {}

    def _measure(self, seconds: float) -> None:
        for job in self.jobs.values():
            placed = sum(p.node is not None and not p.over for p in self.of(job))
            if placed == job.size and not job.deleting:
                self._admitted[job.uid] = job
        for job in self._admitted.values():
            # Until its last pod is gone an attempt has not given its nodes back, Job or no Job.
            if any(pod.node and not pod.over for pod in self.of(job)):
                self.held_seconds += seconds
                self.device_seconds += seconds * job.size

    # --- faults -----------------------------------------------------------------------------------

    def node_up(self, node: Node) -> None:
        """It has been started again: what ran on it is lost."""
        if node.down_since is None:
            return
        node.down_since = None
        for pod in self.pods.values():
            if pod.node is node and not pod.over:
                pod.silent = False
                if pod.started_at is not None:
                    pod.end(Exit(137, "ContainerStatusUnknown"), self.now)

    def evict(self) -> None:
        """By the queue."""
        for job in self.jobs.values():
            if self.queue and not job.finished and not job.deleting:
                job.suspended = True

    def inventory(self) -> Inventory | None:
        if not self.readable_nodes:
            return None
        left = Inventory([node.body(self.now) for node in self.nodes.values()])
        left.take(p.body(0, 0) for p in self.pods.values() if p.node is not None)
        return left


def _avoided(manifest: dict[str, Any]) -> set[str]:
    """Nodes that the pod template's affinity forbids."""
    affinity = manifest["spec"]["template"]["spec"].get("affinity") or {}
    required = (affinity.get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution", {}
    )
    fields = [
        e for term in required.get("nodeSelectorTerms", []) for e in term.get("matchFields", [])
    ]
    return {name for field_ in fields for name in field_["values"]}
