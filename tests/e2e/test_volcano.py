"""Runs under Volcano itself: all workers at once or none, and in a queue. The workers are scripted,
their GPUs pretended; scheduler and controllers are Volcano's own (`tests/support/volcano.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crashing_operator import Plan
from lives import HOLDS_AT, STEPS, Stage, operator_kubeconfig, set_up, spec
from runs import ROOT, install_rights
from volcano import CONTROLLERS, SCHEDULER, Volcano

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.nodespec import DEFAULT_CAPACITY, NodeSpec

pytestmark = [pytest.mark.cluster, pytest.mark.e2e, pytest.mark.timeout(600)]

GPU = "nvidia.com/gpu"
EXAMPLE = ROOT / "manifests/examples/volcano.yaml"
QUEUE = ROOT / "manifests/examples/volcano/queue.yaml"
NAMESPACE = "research"
NODES, GPUS = 2, 5
HOLDS = {1: {"hold_at": HOLDS_AT}}
"""The first attempt waits at that step to be stopped."""
Json = dict[str, Any]


@pytest.fixture(scope="module")
def volcano_programs() -> tuple[Path, Path]:
    return SCHEDULER.find(print), CONTROLLERS.find(print)


@pytest.fixture(scope="module")
def volcano(
    volcano_programs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    nodes = [NodeSpec(f"node-{n}", DEFAULT_CAPACITY | {GPU: str(GPUS)}) for n in range(NODES)]
    folder = tmp_path_factory.mktemp("volcano")
    with Cluster(folder / "state", nodes) as cluster, Volcano(cluster, folder):
        install_rights(cluster)
        cluster.kubectl("create", "-f", str(QUEUE))
        yield cluster
        assert cluster.failure() is None


@pytest.fixture(scope="module")
def stage(volcano: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    folder.chmod(0o755)
    kubeconfig = operator_kubeconfig(volcano, folder)
    with set_up(volcano, NAMESPACE, folder / "stage", kubeconfig) as stage:
        stage.operate(Plan())
        yield stage


def _submit(
    stage: Stage, name: str, nodes: int, gpus: int, script: Json, queue: str | None = None
) -> None:
    """The example's run, with this script; in Volcano's default Queue where none is named."""
    example = yaml.safe_load(EXAMPLE.read_text())
    ((annotation, _),) = example["metadata"]["annotations"].items()
    fields = spec(nodes, script)
    workers = fields["workers"]
    workers["resources"] = {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {GPU: gpus}}
    workers["template"]["spec"] |= example["spec"]["workers"]["template"]["spec"]
    run = stage.bench.manifest(name, **fields)
    run["metadata"]["annotations"] = {} if queue is None else {annotation: queue}
    stage.bench.cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", input=json.dumps(run))


def _complete(stage: Stage, name: str) -> None:
    """At its first attempt."""
    status = stage.end(name)
    assert status["phase"] == "Complete", f"{status}\n{stage.bench.events(name)}"
    assert (status["attempt"], status["restarts"], status["interruptions"]) == (1, 0, 0)
    assert len(stage.journal(name)) == STEPS


def _read(stage: Stage, kind: str, *chosen: str) -> list[Json]:
    told = stage.bench.cluster.kubectl("get", kind, "-n", NAMESPACE, "-o", "json", *chosen)
    items: list[Json] = json.loads(told.stdout)["items"]
    return items


def _gang(stage: Stage, name: str) -> Json:
    """The PodGroup of a run's first attempt; it is the only one."""
    kind = "podgroups.scheduling.volcano.sh"
    (group,) = (
        group
        for group in _read(stage, kind)
        if group["metadata"]["ownerReferences"][0]["name"] == f"{name}-1"
    )
    return group


def _why_it_waits(stage: Stage, name: str, reason: str) -> str:
    """What its condition `Admitted` says, once that has this reason."""

    def found(status: Json) -> list[str]:
        admitted = [c for c in status.get("conditions", []) if c["type"] == "Admitted"]
        return [c["message"] for c in admitted if c["reason"] == reason]

    status = stage.until(name, found)
    assert status["phase"] == "Queued"
    pods = _read(stage, "pods", "-l", f"daybreak.dev/run={name}")
    assert [(p["status"]["phase"], p["spec"].get("nodeName")) for p in pods] == [
        ("Pending", None)
    ] * NODES
    return found(status)[0]


def test_a_run_that_fits_is_one_gang_and_completes(stage: Stage) -> None:
    _submit(stage, "fits", NODES, 1, {})
    _complete(stage, "fits")
    group = _gang(stage, "fits")
    assert group["spec"]["minMember"] == NODES
    assert group["spec"]["queue"] == "default"
    assert group["spec"]["minResources"][GPU] == str(NODES)
    stage.delete("fits")


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        pytest.param(1, GPUS, id="more than is free"),
        pytest.param(2, GPUS - 1, id="as much as is free, but on no two nodes"),
    ],
)
def test_a_gang_that_has_no_room_holds_nothing_says_so_and_starts_whole(
    stage: Stage, held: int, asked: int
) -> None:
    """Volcano holds back the first whole, and tries to place the second; the user reads in either
    case what is asked and where Volcano says what is short."""
    _submit(stage, "holding", 1, held, HOLDS)
    stage.until("holding", lambda status: status.get("phase") == "Running")
    _submit(stage, "gang", NODES, asked, {})
    why = _why_it_waits(stage, "gang", "Unschedulable")
    assert "Volcano has no room for all of them and starts all or none" in why
    assert f"each of spec.workers.nodes ({NODES}) asks for {GPU}: {asked}" in why
    assert "can possibly be assigned" not in why, "of a worker that would have a node"
    command = why.split("`kubectl ")[1].split("`")[0]
    told = stage.bench.cluster.kubectl(*command.split(), "-n", NAMESPACE).stdout
    events = told.partition("Events:")[2]
    assert f"nsufficient {GPU}" in events, told
    stage.delete("holding")
    _complete(stage, "gang")
    stage.delete("gang")


def test_a_run_is_in_the_queue_that_it_names(stage: Stage) -> None:
    _submit(stage, "queued", NODES, 1, {}, queue="training")
    _complete(stage, "queued")
    group = _gang(stage, "queued")
    assert (group["spec"]["queue"], group["spec"]["priorityClassName"]) == ("training", "training")
    stage.delete("queued")


def test_a_queue_that_is_not_there_is_named(stage: Stage) -> None:
    """Volcano says nothing at all of such a run; it starts once the queue is made."""
    _submit(stage, "lost", NODES, 1, {}, queue="nowhere")
    assert "there is no Queue nowhere" in _why_it_waits(stage, "lost", "Unheard")
    queue = yaml.safe_load_all(QUEUE.read_text())
    made = next(each for each in queue if each["kind"] == "Queue")
    made["metadata"]["name"] = "nowhere"
    stage.bench.cluster.kubectl("create", "-f", "-", input=json.dumps(made))
    _complete(stage, "lost")
    stage.delete("lost")
