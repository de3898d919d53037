"""The operator over a simulated cluster: its cache, observer, `decide` and `act` are the real ones;
the API server and the watches are simulated. Watches may lag, start anew (and then tell of no
deletion) and repeat themselves; writes may conflict; the operator may die after any effect.

What must hold at every moment is asserted here, where effects arrive.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from simulated_cluster import LABEL_ATTEMPT, NAME, NAMESPACE, SimulatedCluster, moment, stamp

from daybreak_operator.act import act
from daybreak_operator.api.duration import seconds
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cache import Cache
from daybreak_operator.capacity import Inventory
from daybreak_operator.cluster import ConflictError
from daybreak_operator.decide import Decision, decide
from daybreak_operator.decision import JobRef, PodRef
from daybreak_operator.draft import EventNote
from daybreak_operator.observation import FixedRecipe, JobView, Observation
from daybreak_operator.observe import Observer
from daybreak_operator.pace import Pace
from daybreak_trainer.contract import Progress

KEY = (NAMESPACE, NAME)
TERMINAL = ("Complete", "Failed")
_MOST_LOOKS = 12
"""At one moment, until nothing changes any more: more is a status that feeds itself."""


T = TypeVar("T")


class OperatorKilledError(Exception):
    """In the middle of its effects."""


_LOOP = asyncio.new_event_loop()


def at_once(answer: Coroutine[Any, Any, T]) -> T:
    """What it comes to: nothing in the simulation waits for time to pass."""
    return _LOOP.run_until_complete(answer)


@dataclass
class Api:
    """The API server, with the methods of `Cluster` that the operator uses."""

    cluster: SimulatedCluster
    run: dict[str, Any] | None = None
    seen: set[tuple[str, str]] = field(default_factory=set)
    """Jobs, by run UID and name, whose existence is on record in a status."""
    created: list[dict[str, Any]] = field(default_factory=list)
    absent: set[str] = field(default_factory=set)
    """Names of claims and Secrets that do not exist."""
    recorded: list[EventNote] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    """All that were written, of one run after the other."""
    effects_left: int | None = None
    """Until the operator dies."""
    versions: int = 0

    # --- the operator's side ----------------------------------------------------------------------

    async def ensure(self, run: TrainingRun, body: Mapping[str, Any]) -> None:
        self._effect()
        name = body["metadata"]["name"]
        if body["kind"] == "ConfigMap":
            self.cluster.configs[name] = dict(body)
        if body["kind"] != "Job" or name in self.cluster.jobs:
            return
        alive = self.run is not None and self.run["metadata"]["uid"] == run.uid
        if alive:
            others = [job.name for job in self.cluster.jobs.values() if job.owner_uid == run.uid]
            assert not others, f"{name} beside {others}"
            pods = [pod.name for pod in self.cluster.pods.values() if not pod.over]
            assert not pods, f"{name} beside pods {pods}"
            assert (run.uid, name) not in self.seen, f"{name} was there before"
            assert self.run["status"]["phase"] not in TERMINAL  # type: ignore[index]
            self._check_size(body)
        self.created.append(dict(body))
        self.cluster.create_job(copy.deepcopy(dict(body)))

    async def delete_job(self, run: TrainingRun, job: JobRef) -> None:
        self._effect()
        there = self.cluster.jobs.get(job.name)
        if there is not None and there.uid == job.uid:
            self.cluster.delete_job(job.name)

    async def delete_pod(self, run: TrainingRun, pod: PodRef) -> None:
        self._effect()
        there = self.cluster.pods.get(pod.name)
        if there is None or there.uid != pod.uid:
            return
        if pod.at_once and not there.over:
            assert there.deleted_at is not None, "forced before it was asked to end"
            assert self.cluster.now - there.deleted_at >= self.cluster.grace, "forced too early"
        self.cluster.delete_pod(pod.name, at_once=pod.at_once)

    async def delete_run(self, run: TrainingRun) -> None:
        self._effect()
        if self.run is None or self.run["metadata"]["resourceVersion"] != run.resource_version:
            return
        assert self.run["status"]["phase"] in TERMINAL
        assert "ttlSecondsAfterFinished" in self.run["spec"]
        self.delete()

    async def write_status(self, run: TrainingRun, status: Mapping[str, Any]) -> None:
        self._effect()
        there = self.run
        if there is None or there["metadata"]["resourceVersion"] != run.resource_version:
            raise ConflictError
        before = there.get("status") or {}
        self._check_status(before, status, there)
        if "workers" in status:
            self.seen.add((run.uid, f"{NAME}-{status['attempt']}"))
        self.statuses.append(dict(status))
        self._write(there | {"status": dict(status)})

    async def confirm(self, run: TrainingRun) -> None:
        if self.run is None or self.run["metadata"]["resourceVersion"] != run.resource_version:
            raise ConflictError

    async def children(self, run: TrainingRun) -> dict[str, list[dict[str, Any]]]:
        cluster = self.cluster
        return {
            "Job": [job.body() for job in cluster.jobs.values()],
            "Pod": [pod.body(cluster.skew, cluster.grace) for pod in cluster.pods.values()],
        }

    async def inventory(self) -> Inventory | None:
        return self.cluster.inventory()

    async def recipe(self, run: TrainingRun, recipe_hash: str) -> FixedRecipe | None:
        body = self.cluster.configs.get(f"{NAME}-recipe-{recipe_hash}")
        return FixedRecipe(recipe_hash, *body["data"].values()) if body else None

    async def missing(self, run: TrainingRun, kind: str, name: str) -> bool:
        return name in self.absent

    async def queue_says(self, run: TrainingRun, job: JobView) -> str | None:
        return "not enough quota"

    async def record(self, run: TrainingRun, note: EventNote) -> None:
        self._effect()
        self.recorded.append(note)

    async def ask(self, address: str) -> Progress | None:
        """Worker 0's answer; its address is its pod's UID here."""
        pod = next((p for p in self.cluster.pods.values() if p.uid == address), None)
        if pod is None or not pod.runs or pod.job.gang.begun_at is None or not self.reachable:
            return None
        return pod.job.gang.progress(self.cluster.now)

    unreachable_until: float = 0.0

    @property
    def reachable(self) -> bool:
        return self.cluster.now >= self.unreachable_until

    # --- what users do ----------------------------------------------------------------------------

    def create(self, spec: Mapping[str, Any]) -> None:
        uid = self.cluster.unique("run")
        self.cluster.run_uid = uid
        self.cluster.begin_count()
        metadata = {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": uid,
            "generation": 1,
            "creationTimestamp": stamp(self.cluster.now),
        }
        self._write({"metadata": metadata, "spec": dict(spec)})

    def edit(self, **changes: Any) -> None:
        if self.run is not None:
            spec = {**self.run["spec"], **changes}
            metadata = self.run["metadata"]
            if spec != self.run["spec"]:
                metadata = metadata | {"generation": metadata["generation"] + 1}
            self._write(self.run | {"spec": spec, "metadata": metadata})

    def delete(self) -> None:
        self.run = self.cluster.run_uid = None

    # --- what must hold ---------------------------------------------------------------------------

    def _effect(self) -> None:
        if self.effects_left is not None:
            if self.effects_left <= 0:
                raise OperatorKilledError
            self.effects_left -= 1

    def _write(self, body: dict[str, Any]) -> None:
        self.versions += 1
        metadata = body["metadata"] | {"resourceVersion": str(self.versions)}
        self.run = body | {"metadata": metadata}

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

    def _check_size(self, body: Mapping[str, Any]) -> None:
        assert self.run is not None
        workers, nodes = self.run["spec"]["workers"], body["spec"]["parallelism"]
        attempt = self.run["status"]["currentAttempt"]
        assert nodes == attempt["nodes"]
        assert workers.get("minNodes", 1) <= nodes <= workers.get("maxNodes", nodes)
        scaling = self.run["status"].get("scaling")
        if scaling is not None and scaling["reason"] == "NodesLost":
            assert self.cluster.unplaced_at is not None, "smaller, and no node was missing"


def _check_settled(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """A failed run's ledger is closed when its last worker is gone, once, and the last commit is
    told; nothing else changes."""
    assert before["phase"] == "Failed", "it was over"
    attempt, released = before["currentAttempt"], after["currentAttempt"]
    settled = {"checkpoint": after.get("checkpoint", before.get("checkpoint"))}
    if released != attempt:
        assert "releasedTime" not in attempt, "it was settled"
        times = {"releasedTime": released["releasedTime"]}
        settled |= {"ledger": after["ledger"], "currentAttempt": attempt | times}
    if (commit := settled["checkpoint"]) is None:
        del settled["checkpoint"]
    elif (known := before.get("checkpoint")) != commit:
        assert known is None or commit["step"] > known["step"], "an older commit"
        settled["conditions"] = after["conditions"]
    assert after == {**before, **settled}, f"a terminal status changed: {before} to {after}"


class SimulatedOperator:
    """Looks when a watch brings something, or when its last look asked for it."""

    def __init__(self, api: Api) -> None:
        self.api, self.cluster = api, api.cluster
        self.waiting: dict[str, list[tuple[str | None, dict[str, Any]]]] = {}
        self.late_until: dict[str, float] = {}
        self.down_until = 0.0
        self.kill_after: int | None = None
        self._published: dict[str, dict[str, dict[str, Any]]] = {}
        self.last: Observation | None = None
        self.decision: Decision | None = None
        self.start()

    def start(self) -> None:
        """With an empty memory: watches begin with what there is."""
        self.cache = Cache()
        self.observer = Observer(
            self.cache,
            self.api,  # type: ignore[arg-type]
            self.api,  # type: ignore[arg-type]
            now=lambda: moment(self.cluster.now),
            monotonic=lambda: self.cluster.now,
        )
        self.pace = Pace(clock=lambda: self.cluster.now)
        self.told: set[tuple[str, EventNote]] = set()
        self.waiting = {"Run": [], "Job": [], "Pod": []}
        self.late_until = {}
        self._published = {"Run": {}, "Job": {}, "Pod": {}}
        self.dirty, self.wake_at = True, None
        self.api.effects_left = None

    def relist(self, kind: str) -> None:
        """A watch starts anew: what was on its way is lost, and nothing is told of deletions but of
        the run's, whose end would leave the operator nothing to do."""
        if kind == "Run":
            return
        self.waiting[kind] = [(None, body) for body in self._bodies()[kind].values()]
        self._published[kind] = self._bodies()[kind]

    def repeat(self) -> None:
        """Watches tell once more what is."""
        for kind, bodies in self._published.items():
            self.waiting[kind] += [("MODIFIED", body) for body in bodies.values()]

    def die(self, seconds: float) -> None:
        self.down_until = self.cluster.now + seconds
        self.wake_at = None

    def advance(self, seconds: float) -> None:
        end = self.cluster.now + seconds
        while self.cluster.now < end:
            self.cluster.tick(min(1.0 if seconds <= 60 else 4.0, end - self.cluster.now))
            self.publish()
            if self.cluster.now < self.down_until:
                continue
            if self.down_until:
                self.down_until = 0.0
                self.start()
                self.publish()
            self._work()

    def _work(self) -> None:
        for _ in range(_MOST_LOOKS):
            self._deliver()
            due = self.wake_at is not None and self.wake_at <= self.cluster.now
            if not (self.dirty or due):
                return
            self.look()
            if self.down_until:
                return
            self.publish()
        assert self.decision is not None
        raise AssertionError(f"it does not come to rest: {self.decision.status}")

    def look(self) -> None:
        self._deliver()
        self.dirty, self.wake_at = False, None
        body = self.cache.runs.get(KEY)
        if body is None:
            self.observer.forget(KEY)
            self.pace.forget(KEY)
            return
        run = TrainingRun.of(body)
        self.last = at_once(self.observer.observe(KEY, self.pace.latest(KEY, run)))
        self.decision = decide(self.last)
        if self.decision is None:
            return
        # An Event that is on record is no reason to write.
        news = tuple(note for note in self.decision.events if (run.uid, note) not in self.told)
        self.decision = replace(self.decision, events=news)
        if (left := self.pace.hold(KEY, run, self.decision)) > 0:
            self.wake_at = self.cluster.now + min(left, self.decision.again_seconds or left)
            return
        self.api.effects_left, self.kill_after = self.kill_after, None
        try:
            at_once(act(self.api, run, self.decision, self._wrote))  # type: ignore[arg-type]
        except ConflictError:
            return  # what won is on its way to us
        except OperatorKilledError:
            self.die(5.0)
            return
        finally:
            self.api.effects_left = None
        self.told.update((run.uid, note) for note in news)
        if self.decision.again_seconds is not None:
            self.wake_at = self.cluster.now + self.decision.again_seconds

    def _wrote(self, version: str, body: Mapping[str, Any]) -> None:
        self.pace.written(KEY)

    # --- watches ----------------------------------------------------------------------------------

    def _bodies(self) -> dict[str, dict[str, dict[str, Any]]]:
        cluster, run = self.cluster, self.api.run
        pods = cluster.pods.values()
        return {
            "Run": {run["metadata"]["uid"]: run} if run else {},
            "Job": {job.uid: job.body() for job in cluster.jobs.values()},
            "Pod": {pod.uid: pod.body(cluster.skew, cluster.grace) for pod in pods},
        }

    def publish(self) -> None:
        """What has changed goes on its way."""
        now = self._bodies()
        for kind, bodies in now.items():
            before = self._published[kind]
            gone = [("DELETED", body) for uid, body in before.items() if uid not in bodies]
            news = [("MODIFIED", b) for uid, b in bodies.items() if before.get(uid) != b]
            self.waiting[kind] += [*gone, *news]
        self._published = now

    def _deliver(self) -> None:
        for kind, events in self.waiting.items():
            if self.late_until.get(kind, 0.0) > self.cluster.now:
                continue
            for event, body in events:
                self.dirty = True
                if kind == "Run":
                    self.cache.run_event(event, body)
                else:
                    self.cache.child_event(kind, event, body)
            events.clear()


def attempt_of(body: Mapping[str, Any]) -> int:
    return int(body["metadata"]["labels"][LABEL_ATTEMPT])
