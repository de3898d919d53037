"""Runs under Kueue itself: admitted, queued and evicted. The workers are scripted, their GPUs
pretended; manager, CRDs and webhooks are Kueue's own (`tests/support/kueue.py`)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crashing_operator import Plan
from kueue import KUEUE, Kueue
from lives import HOLDS_AT, STEPS, Stage, operator_kubeconfig, set_up, spec
from runs import ROOT, install_rights

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.nodespec import DEFAULT_CAPACITY, NodeSpec

pytestmark = [pytest.mark.cluster, pytest.mark.e2e, pytest.mark.timeout(600)]

GPU = "nvidia.com/gpu"
QUEUES = ROOT / "manifests/examples/kueue/queues.yaml"
NAMESPACE, QUEUE = "research", "training"
LOW, HIGH = "interruptible", "urgent"
NODES = 2
HOLDS = {1: {"hold_at": HOLDS_AT}}
"""The first attempt waits at that step to be stopped."""
Json = dict[str, Any]


def _queues() -> list[Json]:
    """The example's, with as many GPUs as one run has workers; the node has twice as many."""
    objects: list[Json] = list(yaml.safe_load_all(QUEUES.read_text()))
    for each in objects:
        if each["kind"] == "ClusterQueue":
            (group,) = each["spec"]["resourceGroups"]
            gpus = group["flavors"][0]["resources"][0]
            assert gpus["name"] == GPU
            gpus["nominalQuota"] = NODES
        if each["kind"] == "LocalQueue":
            each["metadata"]["namespace"] = NAMESPACE
    return objects


@pytest.fixture(scope="module")
def kueue_program() -> Path:
    return KUEUE.find(print)


@pytest.fixture(scope="module")
def kueue(
    kueue_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Kueue]]:
    """A cluster of its own, for every Job that is made on it passes Kueue's webhook."""
    node = NodeSpec("node-0", DEFAULT_CAPACITY | {GPU: str(2 * NODES)})
    folder = tmp_path_factory.mktemp("kueue")
    with Cluster(folder / "state", [node]) as cluster, Kueue(cluster, folder) as manager:
        install_rights(cluster)
        # What the flavor selects; Kueue puts it into the Job.
        cluster.kubectl("label", "node", "node-0", f"{GPU}.product=NVIDIA-H200")
        yield cluster, manager
        assert cluster.failure() is None


@pytest.fixture(scope="module")
def stage(
    kueue: tuple[Cluster, Kueue], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    cluster, _ = kueue
    folder = tmp_path_factory.mktemp("stage")
    folder.chmod(0o755)
    kubeconfig = operator_kubeconfig(cluster, folder)
    with set_up(cluster, NAMESPACE, folder / "stage", kubeconfig) as stage:
        listed = {"apiVersion": "v1", "kind": "List", "items": _queues()}
        cluster.kubectl("create", "-f", "-", input=json.dumps(listed))
        stage.operate(Plan())
        yield stage


def _submit(stage: Stage, name: str, priority: str, script: Json, **changes: Any) -> None:
    fields = spec(NODES, script)
    fields["workers"]["resources"] = {"limits": {GPU: 1}}
    labels = {
        "kueue.x-k8s.io/queue-name": QUEUE,
        "kueue.x-k8s.io/priority-class": priority,
    }
    stage.bench.apply(name, labels=labels, **fields | changes)


def _until(stage: Stage, name: str, phase: str, attempt: int = 1) -> Json:
    for run in stage.states(name):
        status: Json = run.get("status", {})
        if (status.get("phase"), status.get("attempt")) == (phase, attempt):
            return status
        assert status.get("phase") not in ("Failed", "Complete"), status
    raise AssertionError("unreachable: states() ends with an error")


def _complete(stage: Stage, name: str) -> Json:
    """Its status at the end; every step was done once, with the samples that are its own."""
    status = stage.end(name)
    assert status["phase"] == "Complete", f"{status}\n{stage.bench.events(name)}"
    assert status["restarts"] == 0
    journal = stage.journal(name)
    assert [(step, position) for step, position, _, _ in journal] == [
        (step, (step - 1) * size) for step, (_, _, size, _) in enumerate(journal, 1)
    ]
    assert len(journal) == STEPS
    return status


def _job(stage: Stage, name: str) -> Json:
    read = stage.bench.cluster.kubectl("get", "job", name, "-n", NAMESPACE, "-o", "json").stdout
    job: Json = json.loads(read)
    return job


def test_an_admitted_run_completes(stage: Stage) -> None:
    """Its Job is made, Kueue holds it and lets it go, and nothing of that is a failure."""
    _submit(stage, "admitted", LOW, {})
    status = _complete(stage, "admitted")
    assert status["attempt"] == 1
    workload = stage.bench.cluster.kubectl(
        *("get", "workloads", "-n", NAMESPACE, "-o"),
        "jsonpath={.items[0].status.admission.clusterQueue}",
    )
    assert workload.stdout == "training"
    stage.delete("admitted")


def test_a_queued_run_says_so_and_waits_as_long_as_it_takes(stage: Stage) -> None:
    """No deadline of start-up runs before it is admitted."""
    _submit(stage, "holding", LOW, HOLDS)
    _until(stage, "holding", "Running")
    seconds = 15
    deadline = {"startupDeadline": f"{seconds}s", "schedulingDeadline": f"{seconds}s"}
    _submit(stage, "queued", LOW, {}, healthPolicy=deadline)
    _until(stage, "queued", "Queued")
    time.sleep(seconds + 1)  # time itself is what is tested
    status = stage.bench.get("queued")["status"]
    assert status["phase"] == "Queued"
    (admitted,) = (c for c in status["conditions"] if c["type"] == "Admitted")
    assert admitted["status"] == "False"
    assert f"insufficient unused quota for {GPU}" in admitted["message"], admitted
    assert stage.bench.pods("queued") == []
    stage.delete("holding")
    assert _complete(stage, "queued")["attempt"] == 1
    stage.delete("queued")


def test_an_evicted_run_commits_queues_again_and_loses_nothing(stage: Stage) -> None:
    """A run of higher priority takes its quota: its workers commit at the step where they are, the
    attempt's end is charged to nobody, and a new attempt waits for quota and goes on."""
    _submit(stage, "low", LOW, HOLDS)
    _until(stage, "low", "Running")
    _submit(stage, "high", HIGH, HOLDS)
    evicted = _until(stage, "low", "Queued", attempt=2)
    assert (evicted["restarts"], evicted["interruptions"]) == (0, 1)
    assert "the queue has taken back attempt 1's nodes" in stage.bench.events("low")
    assert evicted["checkpoint"]["step"] == HOLDS_AT
    assert _job(stage, "low-2")["spec"]["suspend"] is True
    _until(stage, "high", "Running")
    stage.delete("high")
    assert _complete(stage, "low")["attempt"] == 2
    # One that had begun afresh would have committed on the way, as the first attempt did.
    assert stage.bench.commits("low", 2) == [STEPS]
    stage.delete("low")
