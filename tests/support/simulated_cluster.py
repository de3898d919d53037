"""A cluster in memory: what the Job controller, the scheduler, the node controller, kubelets, the
garbage collector and a queue such as Kueue would make of runs' objects, second by second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from simulated_objects import NODE_SILENT_SECONDS, Job, Key, Node, Pod
from simulated_training import Exit, Gang, Preparation, Storage

from daybreak_operator.capacity import Inventory
from daybreak_operator.observation import prepares
from daybreak_trainer.contract import LABEL_ATTEMPT

TOLERATION_SECONDS = 60
START_SECONDS = 3


@dataclass
class SimulatedCluster:
    """Nodes, and what runs on them."""

    nodes: dict[str, Node]
    queue: bool = False
    """Jobs are made suspended and admitted when there are nodes for all of their pods."""
    admits: bool = True
    skew: float = 0.0
    grace: float = 30.0
    image_exists: bool = True
    readable_nodes: bool = True
    interleaved: bool = False
    """Of pods made at one time the scheduler takes one of each Job in turn: two gangs may get a
    part of their nodes each."""
    now: float = 0.0
    jobs: dict[str, Job] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    """Jobs and pods by namespace and name, with a slash between them."""
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    """What else runs own, by kind, namespace and name."""
    run_uids: set[str] = field(default_factory=set)
    """Of the runs that exist."""
    no_pods_until: dict[str, float] = field(default_factory=dict)
    """By namespace: a quota refuses the Job controller's pods."""
    storage: Storage = field(default_factory=Storage)
    unplaced_at: float | None = None
    """When a pod last found no node."""
    failed_to_prepare: list[Pod] = field(default_factory=list)
    """All pods that did, for whatever reason."""
    pods_refused: bool = False
    """At some time a Job could not make all of its pods."""
    made: list[Job] = field(default_factory=list)
    """All Jobs that ever were."""
    trained_at_once: bool = False
    """Two runs did, at some time."""
    crowded: bool = False
    """A run had to wait for nodes that another held, at some time."""
    held_seconds: Counter[str] = field(default_factory=Counter)
    """By the run's UID."""
    _admitted: dict[str, Job] = field(default_factory=dict)
    """By UID: Jobs of attempts whose pods all had a node at some time."""
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def unique(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"

    # --- what clients do --------------------------------------------------------------------------

    def create_job(self, manifest: dict[str, Any]) -> None:
        nodes, metadata = manifest["spec"]["parallelism"], manifest["metadata"]
        owner = metadata["ownerReferences"][0]["uid"]
        gang: Gang | Preparation
        if prepares(metadata):
            gang = Preparation(owner, nodes, self.storage)
        else:
            attempt = int(metadata["labels"][LABEL_ATTEMPT])
            gang = Gang(owner, attempt, nodes, self.storage, self.skew)
        job = Job(manifest, self.unique("job"), gang, suspended=self.queue, suspended_at=self.now)
        self.jobs[job.key] = job
        self.made.append(job)

    def delete_job(self, key: str, propagation: str = "Foreground") -> None:
        job = self.jobs.get(key)
        if job is None:
            return
        if propagation == "Foreground":
            job.deleting = True
            return
        job.gone = True
        del self.jobs[key]
        if propagation == "Orphan":
            for pod in self.of(job):
                pod.owned = False

    def delete_pod(self, key: str, *, at_once: bool = False) -> None:
        pod = self.pods.get(key)
        if pod is None:
            return
        # The finalizer of a Job that would count it keeps a pod whose kubelet is silent.
        job = pod.job
        kept = job.prepares and pod.owned and not (job.deleting or job.gone or job.finished)
        if at_once and not (kept and not pod.over and pod.node and pod.node.down_since is not None):
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
        steppers: Counter[Key] = Counter()
        for job in gangs.values():
            steppers[job.run] += job.gang.advance(self.of(job), self.now, seconds)
        assert max(steppers.values(), default=0) <= 1, "two attempts train at once"
        self.trained_at_once |= steppers.total() > 1
        self._measure(seconds)

    def _collect_garbage(self) -> None:
        for job in list(self.jobs.values()):
            if job.owner_uid not in self.run_uids:
                self.delete_job(job.key, "Background")
        for pod in list(self.pods.values()):
            if pod.over and (pod.deleted_at is not None or (pod.job.gone and pod.owned)):
                self._remove(pod)
            elif pod.owned and pod.job.gone:
                self.delete_pod(pod.key)
        for key, body in list(self.objects.items()):
            if body["metadata"]["ownerReferences"][0]["uid"] not in self.run_uids:
                del self.objects[key]

    def _watch_nodes(self) -> None:
        for pod in self.pods.values():
            if pod.node is None or pod.over:
                continue
            pod.silent = pod.node.silent(self.now)
            since = pod.node.down_since
            limit = NODE_SILENT_SECONDS + TOLERATION_SECONDS
            if since is not None and self.now - since >= limit:
                # The taint manager marks a pod whether or not somebody has deleted it before.
                pod.disruption = "DeletionByTaintManager"
                self.delete_pod(pod.key)

    def _control(self, job: Job) -> None:
        pods = self.of(job)
        if job.deleting:
            for pod in pods:
                self.delete_pod(pod.key)
            if not pods:
                job.gone = True
                del self.jobs[job.key]
            return
        job.completed |= {pod.index for pod in pods if pod.exit and pod.exit.code == 0}
        if job.prepares:
            for pod in pods:
                self._count_retry(pod)
        elif any(pod.exit is not None and pod.exit.code != 0 for pod in pods) and not job.suspended:
            job.failed = job.failed or "a pod failed"
        if job.failed is not None or job.suspended:
            for pod in pods:
                if not pod.over:
                    self.delete_pod(pod.key)
            return
        if self.now < self.no_pods_until.get(job.namespace, 0.0):
            self.pods_refused |= len(pods) < job.size
            return
        # Of a gang none is replaced, and of others when it has ended (podReplacementPolicy).
        there = {p.index for p in pods if not (job.prepares and p.over)} | job.completed
        for index in range(job.size):
            if index not in there:
                pod = Pod(job, index, self.unique("pod"), self.now)
                self.pods[pod.key] = pod

    def _count_retry(self, pod: Pod) -> None:
        """What the end of a pod means for a Job that replaces its pods, by the policy in it."""
        job = pod.job
        if pod.exit is None or pod.exit.code == 0 or pod.counted:
            return
        if job.suspended and pod.exit.code is None:
            return  # it goes with the others, and had not begun
        pod.counted = True
        self.failed_to_prepare.append(pod)
        spec = job.manifest["spec"]
        for rule in spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes", {}).get("values", ())
            disrupted = pod.disruption is not None and "onPodConditions" in rule
            if pod.exit.code in codes or disrupted:
                if rule["action"] == "FailJob":
                    job.failed = job.failed or f"pod {pod.name} ended with {pod.exit.code}"
                return
        job.retries[pod.index] += 1
        if job.retries[pod.index] > spec["backoffLimitPerIndex"]:
            job.failed = job.failed or f"index {pod.index} failed too often"

    def _remove(self, pod: Pod) -> None:
        del self.pods[pod.key]
        job = pod.job
        if pod.exit is None:
            pod.end(Exit(None), self.now)
        assert pod.exit is not None
        if pod.exit.code == 0:
            job.completed.add(pod.index)
        elif job.prepares and not job.deleting:
            self._count_retry(pod)
        elif not job.suspended and not job.deleting:
            job.failed = job.failed or "a pod is gone"

    def _admit(self) -> None:
        free = sum(not self._taken(node) for node in self.nodes.values() if self._up(node))
        for job in self.jobs.values():
            if not (job.suspended or job.deleting or job.finished):
                placed = sum(pod.node is not None and not pod.over for pod in self.of(job))
                free -= job.size - placed - len(job.completed)
        for job in self.jobs.values():
            left = any(not (pod.over and job.prepares) for pod in self.of(job))
            waits = job.suspended and not job.deleting and self.admits and not left
            if waits and free >= job.size:
                job.suspended = False
                free -= job.size

    def _up(self, node: Node) -> bool:
        return not node.silent(self.now)

    def _taken(self, node: Node) -> bool:
        return any(pod.node is node and not pod.over for pod in self.pods.values())

    def _schedule(self) -> None:
        pods = list(self.pods.values())
        if self.interleaved:
            pods.sort(key=lambda pod: (pod.created_at, pod.index))
        for pod in pods:
            if pod.node is not None or pod.deleted_at is not None or pod.over:
                continue
            avoided = _avoided(pod.job.manifest)
            free = [n for n in self.nodes.values() if self._up(n) and not self._taken(n)]
            if fit := [node for node in free if node.name not in avoided]:
                pod.node, pod.scheduled_at = fit[0], self.now
            else:
                self.unplaced_at = self.now
                holders = {p.job.run for p in pods if p.node is not None and not p.over}
                self.crowded |= bool(holders - {pod.job.run})

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

    def _measure(self, seconds: float) -> None:
        for job in self.jobs.values():
            placed = sum(p.node is not None and not p.over for p in self.of(job))
            if placed == job.size and not (job.deleting or job.prepares):
                self._admitted[job.uid] = job
        for job in self._admitted.values():
            # Until its last pod is gone an attempt has not given its nodes back, Job or no Job.
            if any(pod.node and not pod.over for pod in self.of(job)):
                self.held_seconds[job.owner_uid] += seconds

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
            if self.queue and not (job.suspended or job.finished or job.deleting):
                job.suspended, job.suspended_at = True, self.now

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
