"""Runs, their simulated cluster and their operator: what may be done to them, and what must hold in
the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from simulated_api import KEY, TERMINAL, Api, attempt_of
from simulated_cluster import SimulatedCluster
from simulated_objects import Job, Key, Node, Pod
from simulated_operator import SimulatedOperator
from simulated_training import BATCH, TOTAL_STEPS, Commit, Exit, Gang

from daybreak_operator.observation import prepares
from daybreak_trainer.contract import FINAL_EXIT_CODES, UNCHARGED_EXIT_CODES, Termination

CHARGED_CODES = (1, 139, 134, 76)
END_REASONS = {
    "RestartLimitExceeded",
    "NoProgress",
    "OOMKilled",
    "BadData",
    "ImagePullFailed",
    "DeadlineExceeded",
    "BudgetExhausted",
    "PreparationFailed",
}
_START_UP, _BEGIN = 300, 60
"""Seconds: `startupDeadline`, and of it what an attempt takes that has its image."""
Neighbour = Literal["plain", "prepares", "brief", "greedy", "denied", "unreadable"]
"""Another run of the cluster: one like the first; one whose data is prepared; one that is deleted
when it is over; and those that never end: it wants more nodes than there are, a webhook denies its
Jobs, it cannot be read."""
HOSTILE: tuple[Neighbour, ...] = ("greedy", "denied", "unreadable")
NEIGHBOUR_KEYS: tuple[Key, ...] = (("m", "r"), ("n", "r-1"))
"""The first run's name, elsewhere; and the name of its first Job."""


def spec_of(**changes: Any) -> dict[str, Any]:
    """A spec as the API server stores it, with short clocks."""
    workers = {"image": "i", "nodes": 2} | changes.pop("workers", {})
    data: dict[str, Any] = {"streams": [{"url": "s3://d"}]}
    if (nodes := changes.pop("prepare", None)) is not None:
        data["prepare"] = {"source": "digits", "nodes": nodes}
    return {
        "workers": workers,
        "data": data,
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c", "interval": "30s"},
        "failurePolicy": {
            "maxRestarts": 3,
            "window": "1h",
            "noProgressLimit": 3,
            "backoff": {"initial": "5s", "max": "1m"},
        },
        "healthPolicy": {
            "startupDeadline": "5m",
            "progressDeadline": "2m",
            "imagePullDeadline": "3m",
            "schedulingDeadline": "90s",
            "nodeWindow": "2h",
        },
        "scaleCooldown": "1m",
        "terminationGracePeriod": "30s",
        **changes,
    }


def _neighbour(kind: Neighbour) -> dict[str, Any]:
    changes: dict[Neighbour, dict[str, Any]] = {
        "prepares": {"prepare": 1},
        "brief": {"ttlSecondsAfterFinished": 60},
        "greedy": {"workers": {"nodes": 8}},
        "unreadable": {"scaleCooldown": "soon"},
    }
    return spec_of(**changes.get(kind, {}))


class History:
    """Runs, their cluster and their operator, and what was done to them. The first run is the one
    that is meant where none is named."""

    def __init__(
        self,
        spec: dict[str, Any],
        nodes: int,
        neighbours: Sequence[Neighbour] = (),
        refused: tuple[str, int] | None = None,
        **cluster: Any,
    ) -> None:
        names = [f"node-{number}" for number in range(nodes)]
        self.cluster = SimulatedCluster({name: Node(name) for name in names}, **cluster)
        self.api = Api(self.cluster)
        self.kinds = dict(zip(NEIGHBOUR_KEYS, neighbours, strict=False))
        self.specs = {KEY: spec} | {key: _neighbour(kind) for key, kind in self.kinds.items()}
        for key, its in self.specs.items():
            self.api.create(its, key)
        self.api.denied = {key for key, kind in self.kinds.items() if kind == "denied"}
        self.operator = SimulatedOperator(self.api)
        self.chargeable: Counter[Key] = Counter()
        self.slack: defaultdict[Key, float] = defaultdict(float)
        """Seconds by which the operator's count of what was held may be off."""
        self._image_gone_at = 0.0
        self.target = KEY
        if refused is not None:
            self.refuse(refused)

    @property
    def status(self) -> dict[str, Any]:
        return self.status_of(KEY)

    def status_of(self, key: Key) -> dict[str, Any]:
        """As it is, or was when the run went."""
        return self.api.lasts[key].get("status") or {}

    @property
    def held_seconds(self) -> float:
        return self.cluster.held_seconds[self.uid(KEY)]

    def uid(self, key: Key) -> str:
        return str(self.api.lasts[key]["metadata"]["uid"])

    @property
    def ending(self) -> list[Key]:
        """Runs that come to an end."""
        return [key for key in self.specs if self.kinds.get(key) not in HOSTILE]

    def happen(self, after_seconds: int, event: tuple[str, Any], which: int = 0) -> None:
        """To the first run, or to another one where there is one."""
        self.operator.advance(after_seconds)
        self.target = list(self.specs)[which % len(self.specs)]
        what, value = event
        getattr(self, what)(value)

    def _jobs(self) -> list[Job]:
        return [job for job in self.cluster.jobs.values() if job.run == self.target]

    def _pods(self) -> list[Pod]:
        return [pod for pod in self.cluster.pods.values() if pod.job.run == self.target]

    def _at_work(self, number: int) -> Pod | None:
        pods = [pod for pod in self._pods() if pod.runs]
        return pods[number % len(pods)] if pods else None

    def _all_are_slack(self, seconds: float) -> None:
        for key in self.specs:
            self.slack[key] += seconds

    # --- what may happen --------------------------------------------------------------------------

    def pod_ends(self, value: tuple[int, int]) -> None:
        index, code = value
        pod = self._at_work(index)
        if pod is None:
            return
        self.chargeable[self.target] += code in CHARGED_CODES or code == 137
        reason = "BadData" if code == 65 else "Broken"
        told = Termination(reason=reason, message="why", exit_code=code)
        # A kernel's kill leaves no message.
        how = Exit(code) if code in (134, 137, 139) else Exit(code, message=told.to_json())
        pod.end(how, self.cluster.now)

    def out_of_memory(self, index: int) -> None:
        pod = self._at_work(index)
        if pod is not None:
            self.chargeable[self.target] += 1
            pod.end(Exit(137, "OOMKilled"), self.cluster.now)

    def bad_data(self, _: int) -> None:
        """What is to be prepared is of no use."""
        pod = next((pod for pod in self._pods() if pod.runs and pod.job.prepares), None)
        if pod is not None:
            told = Termination(reason="BadData", message="no captions", exit_code=65)
            pod.end(Exit(65, message=told.to_json()), self.cluster.now)

    def hang(self, _: int) -> None:
        for job in self._jobs():
            if isinstance(job.gang, Gang):
                self.chargeable[self.target] += not job.gang.hung
                job.gang.hung = True
                self.slack[self.target] += 30

    def node_down(self, index: int) -> None:
        node = self.cluster.nodes[f"node-{index % len(self.cluster.nodes)}"]
        if node.down_since is None:
            node.down_since = self.cluster.now
        self._all_are_slack(180)

    def node_up(self, index: int) -> None:
        self.cluster.node_up(self.cluster.nodes[f"node-{index % len(self.cluster.nodes)}"])

    def suspend(self, wanted: bool) -> None:
        self.api.edit(self.target, suspend=wanted)

    def scale(self, nodes: int) -> None:
        run = self.api.runs.get(self.target)
        if run is not None and self.kinds.get(self.target) not in HOSTILE:
            workers = run["spec"]["workers"]
            nodes = min(max(nodes, workers.get("minNodes", 1)), workers.get("maxNodes", nodes))
            self.api.edit(self.target, workers=workers | {"nodes": nodes})

    def correct(self, _: int) -> None:
        """Workers that wait are made anew with the new image, and those at work go on."""
        run = self.api.runs.get(self.target)
        if run is not None and self.kinds.get(self.target) not in HOSTILE:
            workers = run["spec"]["workers"]
            self.api.edit(self.target, workers=workers | {"image": f"{workers['image']}i"})

    def limit(self, field: dict[str, Any]) -> None:
        if self.kinds.get(self.target) not in HOSTILE:
            self.api.edit(self.target, **field)

    def delete_job(self, propagation: str) -> None:
        for job in self._jobs():
            self.cluster.delete_job(job.key, propagation)

    def delete_pod(self, index: int) -> None:
        for pod in self._pods():
            if pod.index == index % 2:
                self.cluster.delete_pod(pod.key, at_once=index > 1)

    def evict(self, _: int) -> None:
        self.cluster.evict()
        self._all_are_slack(15)

    def image(self, exists: bool) -> None:
        """One that is away for so long that an attempt does not begin in time is no
        interruption."""
        now, was_there = self.cluster.now, self.cluster.image_exists
        if exists and not was_there:
            for key in self.specs:
                self.chargeable[key] += int((now - self._image_gone_at + _BEGIN) // _START_UP)
        if was_there:
            self._image_gone_at = now
        self.cluster.image_exists = exists

    def refuse(self, value: tuple[str, int]) -> None:
        """A quota of the run's namespace is used up for so many seconds."""
        kind, seconds = value
        namespace, until = self.target[0], self.cluster.now + seconds
        if kind == "Pod":
            self.cluster.no_pods_until[namespace] = until
        else:
            self.api.no_more[namespace, kind] = until

    def unreachable(self, seconds: int) -> None:
        self.api.unreachable_until = self.cluster.now + seconds

    def late(self, value: tuple[str, int]) -> None:
        kind, seconds = value
        self.operator.late_until[kind] = self.cluster.now + seconds
        self._all_are_slack(seconds)

    def relist(self, kind: str) -> None:
        self.operator.relist(kind)

    def repeat(self, _: int) -> None:
        self.operator.repeat()

    def touch(self, _: int) -> None:
        """Somebody else writes to the run; the operator's next write conflicts."""
        self.late(("Run", 2))
        self.api.edit(self.target)
        self.operator.dirty.add(self.target)

    def die(self, effects: int) -> None:
        self.operator.kill_after = effects
        self.operator.dirty.add(self.target)
        self._all_are_slack(10)

    def down(self, seconds: int) -> None:
        self.operator.die(seconds)
        self._all_are_slack(seconds)

    def recreate(self, _: int) -> None:
        """Deletes the run and makes another of its name at once."""
        self.api.delete(self.target)
        self.operator.publish()
        self.chargeable[self.target], self.slack[self.target] = 0, 60.0
        self.api.create(self.specs[self.target], self.target)

    # --- what must hold in the end ----------------------------------------------------------------

    def calm(self, seconds: int = 4 * 3600) -> None:
        """All is well again, or soon, as what is refused; but for runs that are hostile by nature,
        and for a node that is down for good where there are enough others. And time goes by."""
        for number, node in enumerate(self.cluster.nodes.values()):
            if number or len(self.cluster.nodes) < 3:
                self.cluster.node_up(node)
        nodes = sum(node.down_since is None for node in self.cluster.nodes.values())
        self.image(True)
        self.cluster.admits = True
        self.api.unreachable_until = 0.0
        for key in self.specs:
            self.target = key
            self.api.edit(key, suspend=False)
            self.scale(min(self.specs[key]["workers"]["nodes"], nodes))
        until = self.cluster.now + seconds
        while self.cluster.now < until and not all(map(self._is_over, self.ending)):
            self.operator.advance(100)
        self.operator.advance(max(0.0, self.operator.down_until - self.cluster.now) + 300)

    def _is_over(self, key: Key) -> bool:
        return self.status_of(key).get("phase") in TERMINAL

    def check(self) -> None:
        for key in self.ending:
            self._check_end(key)
        for key, kind in self.kinds.items():
            if kind in HOSTILE and not self._is_over(key):
                self._check_hostile(key, kind)

    def _check_hostile(self, key: Key, kind: Neighbour) -> None:
        """It says what it waits for."""
        told = {c["type"]: c for c in self.status_of(key)["conditions"]}
        if kind == "unreadable":
            assert told["Degraded"]["reason"] == "InvalidRun"
        elif kind == "denied":
            assert told["Running"]["reason"] == "ObjectRefused"
        else:
            uid = self.uid(key)
            said = {
                condition["reason"]
                for owner, status in self.api.statuses
                for condition in status["conditions"]
                if owner == uid and condition["type"] == "Running"
            }
            assert said & {"Unschedulable", "Queued"}, said

    def _check_end(self, key: Key) -> None:
        status, uid, api = self.status_of(key), self.uid(key), self.api
        working = [p for p in self.cluster.pods.values() if p.job.run == key and not p.over]
        assert status["phase"] in TERMINAL, (key, status, working)
        conditions = {c["type"]: c for c in status["conditions"]}
        assert conditions[status["phase"]]["status"] == "True"
        if status["phase"] == "Failed":
            assert conditions["Failed"]["reason"] in END_REASONS, conditions["Failed"]
            if conditions["Failed"]["reason"] == "PreparationFailed":
                self._check_cause(uid)
        else:
            commits = self.cluster.storage.commits[uid]
            _check_lineage(max(commits, key=lambda commit: commit.step))
        charged = len(status.get("restartTimes", ()))
        assert charged <= self.chargeable[key], "an interruption was charged"
        assert not working, "workers remain"
        names = [
            attempt_of(body)
            for body in api.created
            if body["metadata"]["ownerReferences"][0]["uid"] == uid
            and not prepares(body["metadata"])
        ]
        assert names == sorted(names)
        if not self.cluster.skew:
            slack = self.slack[key] + 25 * (1 + status["attempt"])
            held = status["ledger"]["heldSeconds"]
            assert abs(held - self.cluster.held_seconds[uid]) <= slack
        ttl = api.lasts[key]["spec"].get("ttlSecondsAfterFinished")
        assert (key in api.runs) == (ttl is None), "it is left after its time, or went before"
        if ttl is not None:
            assert uid in api.expired
            self._check_nothing_left(key)

    def _check_cause(self, uid: str) -> None:
        """Preparation is given up for bad data, or after a few pods that nobody took away."""
        pods = [pod for pod in self.cluster.failed_to_prepare if pod.job.owner_uid == uid]
        final = [pod for pod in pods if pod.exit and pod.exit.code in FINAL_EXIT_CODES]
        asked = [pod for pod in pods if pod.exit and pod.exit.code in UNCHARGED_EXIT_CODES]
        assert final or sum(p.disruption is None and p not in asked for p in pods) > 3, pods

    def check_deletion(self) -> None:
        """Nothing is left of the runs, and nothing is made for them any more."""
        for key in self.specs:
            self.api.delete(key)
        self.operator.advance(60)
        for key in self.specs:
            self._check_nothing_left(key)

    def check_memory(self) -> None:
        """However little it was told, the operator knows of nothing that is gone."""
        self.operator.advance(1300)
        cache = self.operator.cache
        there = {key: run["metadata"]["uid"] for key, run in self.api.runs.items()}
        assert {key: run["metadata"]["uid"] for key, run in cache.runs.items()} == there
        uids = {pod.uid for pod in self.cluster.pods.values()}
        uids |= {job.uid for job in self.cluster.jobs.values()}
        for key in self.specs:
            known = [*cache.children("Job", key), *cache.children("Pod", key)]
            assert {body["metadata"]["uid"] for body in known} <= uids

    def _check_nothing_left(self, key: Key) -> None:
        cluster, uid = self.cluster, self.uid(key)
        jobs = [job.name for job in cluster.jobs.values() if job.owner_uid == uid]
        # Pods that a user has orphaned are theirs.
        pods = [p.name for p in cluster.pods.values() if p.job.owner_uid == uid and p.owned]
        owners = [
            body["metadata"]["ownerReferences"][0]["uid"] for body in cluster.objects.values()
        ]
        assert (jobs, pods, uid in owners) == ([], [], False), (jobs, pods, owners)


def _check_lineage(commit: Commit) -> None:
    """Each step is counted once."""
    assert (commit.step, commit.samples) == (TOTAL_STEPS, BATCH * TOTAL_STEPS)
    while commit.parent is not None:
        assert commit.parent.step < commit.step
        assert commit.parent.attempt <= commit.attempt
        commit = commit.parent
