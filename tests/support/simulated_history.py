"""One run, its simulated cluster and its operator: what may be done to them, and what must hold in
the end."""

from __future__ import annotations

from typing import Any

from simulated_cluster import Node, SimulatedCluster
from simulated_operator import TERMINAL, Api, SimulatedOperator, attempt_of
from simulated_training import BATCH, TOTAL_STEPS, Commit, Exit

from daybreak_trainer.contract import Termination

CHARGED_CODES = (1, 139, 134, 76)
END_REASONS = {
    "RestartLimitExceeded",
    "NoProgress",
    "OOMKilled",
    "BadData",
    "ImagePullFailed",
    "DeadlineExceeded",
    "BudgetExhausted",
}


def spec_of(**changes: Any) -> dict[str, Any]:
    """A spec as the API server stores it, with short clocks."""
    workers = {"image": "i", "nodes": 2} | changes.pop("workers", {})
    return {
        "workers": workers,
        "data": {"streams": [{"url": "s3://d"}]},
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


class History:
    """One run, its cluster and its operator, and what was done to them."""

    def __init__(self, spec: dict[str, Any], nodes: int, **cluster: Any) -> None:
        names = [f"node-{number}" for number in range(nodes)]
        self.spec = spec
        self.cluster = SimulatedCluster({name: Node(name) for name in names}, **cluster)
        self.api = Api(self.cluster)
        self.api.create(spec)
        self.operator = SimulatedOperator(self.api)
        self.chargeable = 0
        self.slack = 0.0
        """Seconds by which the operator's count of what was held may be off."""

    @property
    def status(self) -> dict[str, Any]:
        return (self.api.run or {}).get("status") or {}

    def happen(self, after_seconds: int, event: tuple[str, Any]) -> None:
        self.operator.advance(after_seconds)
        what, value = event
        getattr(self, what)(value)

    # --- what may happen --------------------------------------------------------------------------

    def pod_ends(self, value: tuple[int, int]) -> None:
        index, code = value
        pod = next((p for p in self.cluster.pods.values() if p.index == index and p.runs), None)
        if pod is None:
            return
        self.chargeable += code in CHARGED_CODES or code == 137
        reason = "BadData" if code == 65 else "Broken"
        told = Termination(reason=reason, message="why", exit_code=code)
        # A kernel's kill leaves no message.
        how = Exit(code) if code in (134, 137, 139) else Exit(code, message=told.to_json())
        pod.end(how, self.cluster.now)

    def out_of_memory(self, index: int) -> None:
        pod = next((p for p in self.cluster.pods.values() if p.index == index and p.runs), None)
        if pod is not None:
            self.chargeable += 1
            pod.end(Exit(137, "OOMKilled"), self.cluster.now)

    def hang(self, _: int) -> None:
        for job in self.cluster.jobs.values():
            self.chargeable += not job.gang.hung
            job.gang.hung = True
            self.slack += 30

    def node_down(self, index: int) -> None:
        node = self.cluster.nodes[f"node-{index % len(self.cluster.nodes)}"]
        if node.down_since is None:
            node.down_since = self.cluster.now
        self.slack += 180

    def node_up(self, index: int) -> None:
        self.cluster.node_up(self.cluster.nodes[f"node-{index % len(self.cluster.nodes)}"])

    def suspend(self, wanted: bool) -> None:
        self.api.edit(suspend=wanted)

    def scale(self, nodes: int) -> None:
        if self.api.run is not None:
            workers = self.api.run["spec"]["workers"]
            nodes = min(max(nodes, workers.get("minNodes", 1)), workers.get("maxNodes", nodes))
            self.api.edit(workers=workers | {"nodes": nodes})

    def limit(self, field: dict[str, Any]) -> None:
        self.api.edit(**field)

    def delete_job(self, propagation: str) -> None:
        for name in list(self.cluster.jobs):
            self.cluster.delete_job(name, propagation)

    def delete_pod(self, index: int) -> None:
        pods = [pod for pod in self.cluster.pods.values() if pod.index == index % 2]
        for pod in pods:
            self.cluster.delete_pod(pod.name, at_once=index > 1)

    def evict(self, _: int) -> None:
        self.cluster.evict()
        self.slack += 15

    def image(self, exists: bool) -> None:
        self.cluster.image_exists = exists

    def unreachable(self, seconds: int) -> None:
        self.api.unreachable_until = self.cluster.now + seconds

    def late(self, value: tuple[str, int]) -> None:
        kind, seconds = value
        self.operator.late_until[kind] = self.cluster.now + seconds
        self.slack += seconds

    def relist(self, kind: str) -> None:
        self.operator.relist(kind)

    def repeat(self, _: int) -> None:
        self.operator.repeat()

    def touch(self, _: int) -> None:
        """Somebody else writes to the run; the operator's next write conflicts."""
        self.late(("Run", 2))
        self.api.edit()
        self.operator.dirty = True

    def die(self, effects: int) -> None:
        self.operator.kill_after = effects
        self.operator.dirty = True
        self.slack += 10

    def down(self, seconds: int) -> None:
        self.operator.die(seconds)
        self.slack += seconds

    def recreate(self, _: int) -> None:
        """Deletes the run and makes another of its name at once."""
        self.api.delete()
        self.operator.publish()
        self.chargeable, self.slack = 0, 60.0
        self.api.create(self.spec)

    # --- what must hold in the end ----------------------------------------------------------------

    def calm(self, seconds: int = 2 * 3600) -> None:
        """All is well again, and time goes by."""
        for node in self.cluster.nodes.values():
            self.cluster.node_up(node)
        self.cluster.image_exists = self.cluster.admits = True
        self.api.unreachable_until = 0.0
        self.api.edit(suspend=False)
        self.scale(min(self.spec["workers"]["nodes"], len(self.cluster.nodes)))
        until = self.cluster.now + seconds
        while self.cluster.now < until and self.status.get("phase") not in TERMINAL:
            self.operator.advance(100)
        self.operator.advance(100)

    def check(self) -> None:
        status, api = self.status, self.api
        assert status["phase"] in TERMINAL, (status, list(self.cluster.pods.values()))
        conditions = {c["type"]: c for c in status["conditions"]}
        assert conditions[status["phase"]]["status"] == "True"
        uid = api.run["metadata"]["uid"]  # type: ignore[index]
        if status["phase"] == "Failed":
            assert conditions["Failed"]["reason"] in END_REASONS, conditions["Failed"]
        else:
            commits = self.cluster.storage.commits[uid]
            _check_lineage(max(commits, key=lambda commit: commit.step))
        charged = len(status.get("restartTimes", ()))
        assert charged <= self.chargeable, "an interruption was charged"
        assert not [p for p in self.cluster.pods.values() if not p.over], "workers remain"
        names = [
            attempt_of(body)
            for body in api.created
            if body["metadata"]["ownerReferences"][0]["uid"] == uid
        ]
        assert names == sorted(names)
        if not self.cluster.skew:
            slack = self.slack + 25 * (1 + status["attempt"])
            held = status["ledger"]["heldSeconds"]
            assert abs(held - self.cluster.held_seconds) <= slack

    def check_deletion(self) -> None:
        """Nothing is left of the run, and nothing is made for it any more."""
        self.api.delete()
        self.operator.advance(60)
        # Pods that a user has orphaned are theirs.
        pods = [pod for pod in self.cluster.pods.values() if pod.owned]
        assert (self.cluster.jobs, pods, self.cluster.configs) == ({}, [], {})


def _check_lineage(commit: Commit) -> None:
    """Each step is counted once."""
    assert (commit.step, commit.samples) == (TOTAL_STEPS, BATCH * TOTAL_STEPS)
    while commit.parent is not None:
        assert commit.parent.step < commit.step
        assert commit.parent.attempt <= commit.attempt
        commit = commit.parent
