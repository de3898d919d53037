"""The API server over a simulated cluster, with the methods of `Cluster` that the operator uses,
and what users do to runs. It may refuse what it is to create; writes may conflict; the operator may
die after any effect.

What must hold at every moment is asserted here, where effects arrive.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from simulated_cluster import SimulatedCluster
from simulated_objects import NAME, NAMESPACE, Job, Key, stamp
from simulated_training import Preparation

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.capacity import Inventory
from daybreak_operator.cluster import Named
from daybreak_operator.decision import JobRef, PodRef
from daybreak_operator.draft import EventNote
from daybreak_operator.errors import (
    ConflictError,
    ForeignObjectError,
    GoneError,
    RefusedObjectError,
)
from daybreak_operator.observation import FixedRecipe, JobView, PreparationView, prepares
from daybreak_trainer.contract import LABEL_ATTEMPT, Progress

KEY = (NAMESPACE, NAME)
TERMINAL = ("Complete", "Failed")


class OperatorKilledError(Exception):
    """In the middle of its effects."""


@dataclass(frozen=True)
class Refusal:
    """Of an object that the run of this UID needs, since when."""

    uid: str
    since: float


@dataclass
class Api:
    """Runs, and what the operator may ask for them."""

    cluster: SimulatedCluster
    runs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    lasts: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Each name's run as it last was, whether or not it still is."""
    seen: set[tuple[str, str]] = field(default_factory=set)
    """Jobs, by run UID and name, whose existence is on record in a status."""
    created: list[dict[str, Any]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    """Names of claims and Secrets that do not exist."""
    recorded: list[EventNote] = field(default_factory=list)
    statuses: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """All that were written, with their run's UID."""
    no_more: dict[tuple[str, str], float] = field(default_factory=dict)
    """Namespace and kind of objects that a quota refuses, until when."""
    denied: set[Key] = field(default_factory=set)
    """Runs whose Jobs a webhook denies for good."""
    refusals: dict[Key, dict[str, Refusal]] = field(default_factory=dict)
    """By run and object: what was refused, until it is made."""
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often, by run UID and object."""
    expired: list[str] = field(default_factory=list)
    """UIDs of runs that the operator has deleted."""
    effects_left: int | None = None
    """Until the operator dies."""
    versions: int = 0
    unreachable_until: float = 0.0

    @property
    def run(self) -> dict[str, Any] | None:
        return self.runs.get(KEY)

    # --- the operator's side ----------------------------------------------------------------------

    async def ensure(self, run: TrainingRun, body: Mapping[str, Any]) -> None:
        self._effect()
        kind, name = body["kind"], body["metadata"]["name"]
        found = self._child(kind, run.namespace, name)
        if found is not None:
            if found["metadata"]["ownerReferences"][0]["uid"] != run.uid:
                raise ForeignObjectError(f"{kind} {name} exists")
            return
        self._refuse(run, kind, name)
        if kind == "Job":
            self._create_job(run, name, body)
        elif run.uid in self.cluster.run_uids:
            self.cluster.objects[kind, run.namespace, name] = dict(body)

    def _child(self, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None:
        if kind == "Job":
            job = self.cluster.jobs.get(f"{namespace}/{name}")
            return job.manifest if job else None
        return self.cluster.objects.get((kind, namespace, name))

    def _refuse(self, run: TrainingRun, kind: str, name: str) -> None:
        key, now = (run.namespace, run.name), self.cluster.now
        what, known = f"{kind} {name}", self.refusals.setdefault(key, {})
        quota = now < self.no_more.get((run.namespace, kind), 0.0)
        if not (quota or (kind == "Job" and key in self.denied)):
            # An attempt whose Job was refused may have had a successor.
            for made in [w for w in known if w == what or kind == w.split()[0] == "Job"]:
                del known[made]
            return
        if what not in known or known[what].uid != run.uid:
            known[what] = Refusal(run.uid, now)
        self.refused[run.uid, what] += 1
        raise RefusedObjectError(f"{what}: exceeded quota")

    def _create_job(self, run: TrainingRun, name: str, body: Mapping[str, Any]) -> None:
        there = self.runs.get((run.namespace, run.name))
        if there is not None and there["metadata"]["uid"] == run.uid:
            self._check_job(run, there, name, body)
        self.created.append(dict(body))
        self.cluster.create_job(copy.deepcopy(dict(body)))

    async def delete_job(self, run: TrainingRun, job: JobRef) -> None:
        self._effect()
        there = self.cluster.jobs.get(f"{run.namespace}/{job.name}")
        if there is not None and there.uid == job.uid:
            assert there.run == (run.namespace, run.name), "another run's Job"
            self.cluster.delete_job(there.key)

    async def delete_pod(self, run: TrainingRun, pod: PodRef) -> None:
        self._effect()
        there = self.cluster.pods.get(f"{run.namespace}/{pod.name}")
        if there is None or there.uid != pod.uid:
            return
        assert there.job.run == (run.namespace, run.name), "another run's pod"
        if pod.at_once and not there.over:
            assert there.deleted_at is not None, "forced before it was asked to end"
            assert self.cluster.now - there.deleted_at >= self.cluster.grace, "forced too early"
        self.cluster.delete_pod(there.key, at_once=pod.at_once)

    async def delete_run(self, run: TrainingRun) -> None:
        self._effect()
        there = self._as_read(run)
        status = there["status"]
        assert status["phase"] in TERMINAL
        ended = datetime.fromisoformat(status["completionTime"])
        due = stamp(self.cluster.now - there["spec"]["ttlSecondsAfterFinished"])
        assert datetime.fromisoformat(due) >= ended, "deleted before its time"
        self.expired.append(run.uid)
        self.delete((run.namespace, run.name))

    async def write_status(self, run: TrainingRun, status: Mapping[str, Any]) -> dict[str, Any]:
        self._effect()
        there = self._as_read(run)
        before = there.get("status") or {}
        self._check_status(before, status, there)
        if "workers" in status:
            self.seen.add((run.uid, f"{run.name}-{status['attempt']}"))
        self.statuses.append((run.uid, dict(status)))
        return self._write(there | {"status": dict(status)})

    async def patch_status(
        self, run: Named, resource_version: str, status: Mapping[str, Any]
    ) -> None:
        there = self._there(run)
        if there["metadata"]["resourceVersion"] != resource_version:
            raise ConflictError
        self._write(there | {"status": (there.get("status") or {}) | status})

    async def confirm(self, run: TrainingRun) -> None:
        self._as_read(run)

    def _there(self, run: Named) -> dict[str, Any]:
        if (there := self.runs.get((run.namespace, run.name))) is None:
            raise GoneError
        return there

    def _as_read(self, run: TrainingRun) -> dict[str, Any]:
        """The run, if it is still the one that was read."""
        there = self._there(run)
        if there["metadata"]["resourceVersion"] != run.resource_version:
            raise ConflictError
        return there

    async def run_uids(self, namespace: str) -> set[str]:
        return {run["metadata"]["uid"] for key, run in self.runs.items() if key[0] == namespace}

    async def children(self, run: TrainingRun) -> dict[str, list[dict[str, Any]]]:
        cluster, key = self.cluster, (run.namespace, run.name)
        pods = [pod for pod in cluster.pods.values() if pod.job.run == key]
        return {
            "Job": [job.body() for job in self._jobs(key)],
            "Pod": [pod.body(cluster.skew, cluster.grace) for pod in pods],
        }

    def _jobs(self, key: Key) -> Iterator[Job]:
        return (job for job in self.cluster.jobs.values() if job.run == key)

    async def inventory(self) -> Inventory | None:
        return self.cluster.inventory()

    async def recipe(self, run: TrainingRun, recipe_hash: str) -> FixedRecipe | None:
        where = ("ConfigMap", run.namespace, f"{run.name}-recipe-{recipe_hash}")
        body = self.cluster.objects.get(where)
        return FixedRecipe(recipe_hash, *body["data"].values()) if body else None

    async def missing(self, run: TrainingRun, kind: str, name: str) -> bool:
        return name in self.absent

    async def queue_says(self, run: TrainingRun, job: JobView | PreparationView) -> str | None:
        return "not enough quota"

    async def record(self, run: Named, note: EventNote) -> None:
        self._effect()
        self.recorded.append(note)

    async def ask(self, address: str) -> Progress | None:
        """Worker 0's answer; its address is its pod's UID here."""
        pod = next((p for p in self.cluster.pods.values() if p.uid == address), None)
        if pod is None or not pod.runs or self.cluster.now < self.unreachable_until:
            return None
        gang = pod.job.gang
        if isinstance(gang, Preparation) or gang.begun_at is None:
            return None
        return gang.progress(self.cluster.now)

    # --- what users do ----------------------------------------------------------------------------

    def create(self, spec: Mapping[str, Any], key: Key = KEY) -> None:
        uid = self.cluster.unique("run")
        self.cluster.run_uids.add(uid)
        metadata = {
            "name": key[1],
            "namespace": key[0],
            "uid": uid,
            "generation": 1,
            "creationTimestamp": stamp(self.cluster.now),
        }
        self._write({"metadata": metadata, "spec": dict(spec)})

    def edit(self, key: Key = KEY, **changes: Any) -> None:
        run = self.runs.get(key)
        if run is not None:
            spec, metadata = {**run["spec"], **changes}, run["metadata"]
            if spec != run["spec"]:
                metadata = metadata | {"generation": metadata["generation"] + 1}
            self._write(run | {"spec": spec, "metadata": metadata})

    def delete(self, key: Key = KEY) -> None:
        run = self.runs.pop(key, None)
        if run is not None:
            self.cluster.run_uids.remove(run["metadata"]["uid"])
            self.refusals.pop(key, None)

    # --- what must hold ---------------------------------------------------------------------------

    def _effect(self) -> None:
        if self.effects_left is not None:
            if self.effects_left <= 0:
                raise OperatorKilledError
            self.effects_left -= 1

    def _write(self, body: dict[str, Any]) -> dict[str, Any]:
        self.versions += 1
        metadata = body["metadata"] | {"resourceVersion": str(self.versions)}
        key = (metadata["namespace"], metadata["name"])
        self.runs[key] = self.lasts[key] = body | {"metadata": metadata}
        return self.runs[key]

    def _check_job(
        self, run: TrainingRun, there: Mapping[str, Any], name: str, body: Mapping[str, Any]
    ) -> None:
        """Of a Job that is about to be made for a run that exists."""
        key, spec, status = (run.namespace, run.name), there["spec"], there["status"]
        mine = (job for job in self._jobs(key) if job.owner_uid == run.uid)
        others = [job.name for job in mine if not (job.prepares and job.finished)]
        assert not others, f"{name} beside {others}"
        assert status["phase"] not in TERMINAL
        assert not spec.get("suspend"), f"{name} for a suspended run"
        prepared = status.get("preparation", {}).get("state")
        if prepares(body["metadata"]):
            assert (prepared, status["attempt"]) == ("Running", 0), "it was prepared before"
            return
        pods = [
            pod.name
            for pod in self.cluster.pods.values()
            if pod.job.run == key and not pod.over and not pod.job.prepares
        ]
        assert not pods, f"{name} beside pods {pods}"
        assert (run.uid, name) not in self.seen, f"{name} was there before"
        if (wanted := spec["data"].get("prepare")) is not None:
            done = Preparation(run.uid, wanted["nodes"], self.cluster.storage).done
            assert (prepared, done) == ("Done", True), "an attempt without its data"
        workers, nodes = spec["workers"], body["spec"]["parallelism"]
        assert nodes == status["currentAttempt"]["nodes"]
        assert workers.get("minNodes", 1) <= nodes <= workers.get("maxNodes", nodes)
        scaling = status.get("scaling")
        if scaling is not None and scaling["reason"] == "NodesLost":
            assert self.cluster.unplaced_at is not None, "smaller, and no node was missing"

    def _check_status(
        self, before: Mapping[str, Any], after: Mapping[str, Any], run: Mapping[str, Any]
    ) -> None:
        assert before != after, "a write that changes nothing"
        if before.get("phase") in TERMINAL:
            _check_settled(before, after)
        assert after["attempt"] >= before.get("attempt", 0)
        expected = after.get("progress", {}).get("estimatedCompletionTime")
        assert expected is None or after["phase"] == "Running", (
            "an end is promised and nobody trains"
        )
        policy = run["spec"]["failurePolicy"]
        times = [datetime.fromisoformat(time) for time in after.get("restartTimes", ())]
        window = seconds(policy["window"])
        recent = [t for t in times if (times[-1] - t).total_seconds() < window]
        assert len(recent) <= policy["maxRestarts"], "restarted beyond the budget"
        ledger = after["ledger"]
        wall = datetime.fromisoformat(ledger["accountedUntil"]) - datetime.fromisoformat(
            run["metadata"]["creationTimestamp"]
        )
        spent = ledger["productiveSeconds"] + sum(ledger["lostSeconds"].values())
        assert spent == int(wall.total_seconds()), "the ledger does not add up"
        assert min([0, *ledger["lostSeconds"].values()]) == 0
        if not after["attempt"]:
            assert set(ledger["lostSeconds"]) <= {"queue", "suspended", "preparation"}


def _check_settled(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """A failed run's ledger is closed when its last worker is gone, once, and the last commit is
    told; nothing else changes but what its conditions say of that."""
    assert before["phase"] == "Failed", "it was over"
    attempt, released = before["currentAttempt"], after["currentAttempt"]
    settled = {"checkpoint": after.get("checkpoint", before.get("checkpoint"))}
    if released != attempt:
        assert "releasedTime" not in attempt, "it was settled"
        times = {"releasedTime": released["releasedTime"]}
        settled |= {"ledger": after["ledger"], "currentAttempt": attempt | times}
        settled["conditions"] = after["conditions"]
    if (commit := settled["checkpoint"]) is None:
        del settled["checkpoint"]
    elif (known := before.get("checkpoint")) != commit:
        assert known is None or commit["step"] > known["step"], "an older commit"
        settled["conditions"] = after["conditions"]
    assert after == {**before, **settled}, f"a terminal status changed: {before} to {after}"


def attempt_of(body: Mapping[str, Any]) -> int:
    return int(body["metadata"]["labels"][LABEL_ATTEMPT])
