"""Whole runs on the real control plane, with the real trainer: what disturbs them changes nothing
of what is learned; what is wrong with them is said."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from runs import Bench

from daybreak_cli.playground import create_claim, create_claims, install_operator
from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import presets

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# The same samples on the same number of ranks, in the same order: only a resume in between, whose
# state is stored in full. What remains is the order in which gloo adds two ranks' gradients.
_LOSS_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def operator(devcluster: Cluster) -> Cluster:
    install_operator(devcluster)
    return devcluster


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "digits"
    prepare("digits", folder, count=200, shard_bytes=1 << 14)
    return folder


@pytest.fixture
def bench(operator: Cluster, namespace: str, dataset: Path, tmp_path: Path) -> Bench:
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    shutil.copytree(dataset, tmp_path / "datasets")
    create_claims(operator, namespace, tmp_path)
    return Bench(operator, namespace, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(
    operator: Cluster, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[dict[str, Any]]]:
    """The journal of a run that nothing happened to."""
    folder, namespace = tmp_path_factory.mktemp("undisturbed"), "undisturbed"
    operator.kubectl("create", "namespace", namespace)
    shutil.copytree(dataset, folder / "datasets")
    create_claims(operator, namespace, folder)
    bench = Bench(operator, namespace, folder)
    bench.apply("calm")
    status = bench.end("calm")
    assert status["phase"] == "Complete", bench.events("calm")
    assert status["attempt"] == 1
    yield bench.journal("calm")
    operator.kubectl("delete", "namespace", namespace, "--wait=false")


def _same(journal: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    keys = ("step", "position", "size", "samples")
    assert [[line[k] for k in keys] for line in journal] == [
        [line[k] for k in keys] for line in reference
    ]
    losses = [line["loss"] for line in journal]
    assert losses == pytest.approx([line["loss"] for line in reference], rel=_LOSS_TOLERANCE)


@pytest.mark.training
def test_a_killed_rank_costs_seconds_and_no_attempt(
    bench: Bench, undisturbed: list[dict[str, Any]]
) -> None:
    """SIGKILL of a rank: all ranks start again inside their pods, from the last commit, and learn
    what an undisturbed run learns."""
    bench.apply("killed")
    bench.worker_at_step("killed", 30)
    pod = bench.pods("killed")[1]
    # The launcher forks its rank: of the two, the rank is the younger.
    launcher, *_, rank = faults.processes(
        bench.cluster, bench.namespace, pod, match="daybreak_trainer.launch"
    )
    assert rank != launcher
    os.kill(rank, signal.SIGKILL)
    status = bench.end("killed")
    assert status["phase"] == "Complete", bench.events("killed")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    _same(bench.journal("killed"), undisturbed)


@pytest.mark.training
def test_a_pod_deleted_at_any_step_is_a_checkpoint_and_a_free_restart(
    bench: Bench, undisturbed: list[dict[str, Any]], seed: int
) -> None:
    """Deleting a worker pod stops all ranks at one step, commits, and charges nothing."""
    bench.apply("deleted")
    # Of 120, for the run must not end before the deletion is heard of.
    pod = bench.worker_at_step("deleted", Random(seed).randrange(1, 30))
    bench.cluster.kubectl("delete", "pod", pod, "-n", bench.namespace, "--wait=false")
    status = bench.end("deleted")
    assert status["phase"] == "Complete", bench.events("deleted")
    assert (status["attempt"], status["restarts"]) == (2, 0)
    assert bench.origin("deleted", 2) is not None
    _same(bench.journal("deleted"), undisturbed)


@pytest.mark.e2e
@pytest.mark.training
def test_scaling_goes_on_with_the_same_global_batches(bench: Bench) -> None:
    """2 → 1 → 2 workers: the same samples in the same steps, which take long enough to be seen."""
    stage = {"resolution": 16, "steps": 120, "batchSize": 400}
    recipe = {"preset": "smoke", "stages": [stage]}
    bench.apply("steady", recipe=recipe)
    assert bench.end("steady")["phase"] == "Complete", bench.events("steady")
    bench.apply("scaled", recipe=recipe, scaleCooldown="0s")
    for attempt, step, nodes in ((1, 20, 1), (2, 60, 2)):
        # In the attempt of the new size, for the one before goes on until it is stopped.
        bench.wait("scaled", lambda s: s.get("attempt") == attempt and s.get("phase") == "Running")  # noqa: B023
        bench.worker_at_step("scaled", step)
        bench.cluster.kubectl(
            *("scale", "trun/scaled", f"--replicas={nodes}", "-n", bench.namespace)
        )
    status = bench.end("scaled")
    assert status["phase"] == "Complete", bench.events("scaled")
    assert (status["attempt"], status["restarts"]) == (3, 0)
    assert bench.origin("scaled", 2) is not None
    assert bench.origin("scaled", 3) is not None
    journal = bench.journal("scaled")
    assert {line["world"] for line in journal} == {1, 2}
    _same(journal, bench.journal("steady"))


@pytest.mark.e2e
@pytest.mark.training
@pytest.mark.parametrize("damage", ["flipped", "uncommitted"])
def test_a_damaged_checkpoint_is_passed_over(
    bench: Bench, undisturbed: list[dict[str, Any]], damage: str
) -> None:
    """The newest checkpoint has a damaged file, or no COMMIT.json: an Event says so and names it,
    and an older one is used."""
    bench.apply("damaged")
    bench.worker_at_step("damaged", 50)
    patch = ("patch", "trun/damaged", "-n", bench.namespace, "--type=merge", "-p")
    bench.cluster.kubectl(*patch, '{"spec":{"suspend":true}}')
    bench.wait("damaged", lambda s: s.get("phase") == "Suspended" and not bench.pods("damaged"))
    newest = max((bench.folder / "checkpoints/damaged").glob("run-*/attempt-*/step-*"))
    if damage == "flipped":
        shard = newest / "__0_0.distcp"
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        problem = "file __0_0.distcp is damaged"
    else:
        (newest / "COMMIT.json").unlink()
        problem = "it has no COMMIT.json"
    bench.cluster.kubectl(*patch, '{"spec":{"suspend":false}}')
    status = bench.end("damaged")
    assert status["phase"] == "Complete", bench.events("damaged")
    assert f"{newest.name} was passed over: {problem}" in bench.events("damaged")
    assert bench.origin("damaged", 2) is not None
    _same(bench.journal("damaged"), undisturbed)


@pytest.mark.training
@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        pytest.param("truncated", marks=pytest.mark.e2e),
        pytest.param("missing", marks=pytest.mark.e2e),
    ],
)
def test_a_bad_shard_ends_the_run_and_is_named(bench: Bench, damage: str) -> None:
    """No training on damaged data, no hang, no endless restarts."""
    shard = sorted((bench.folder / "datasets").glob("*.mds"))[1]
    if damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-9] ^= 4
        shard.write_bytes(content)
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-9])
    else:
        shard.unlink()
    bench.apply("bad")
    status = bench.end("bad")
    assert status["phase"] == "Failed"
    assert status["lastFailure"]["exitCode"] == 65
    assert shard.name in status["lastFailure"]["message"]
    assert shard.name in bench.events("bad")


def test_an_unknown_preset_is_said(bench: Bench) -> None:
    """The message names the field and the presets there are."""
    bench.apply("unknown", recipe={"preset": "tomorrow"})
    status = bench.end("unknown")
    assert status["phase"] == "Failed"
    there_are = "recipe.preset: no preset named 'tomorrow'; there are " + ", ".join(presets())
    assert there_are in bench.events("unknown")
    assert bench.pods("unknown") == []


def test_a_missing_claim_is_said_and_waited_for(bench: Bench) -> None:
    """The run stays Pending, names what is missing, and starts when it is there."""
    missing = {"persistentVolumeClaim": {"claimName": "later"}, "interval": "20steps"}
    bench.apply("early", checkpoint=missing)
    bench.wait("early", lambda s: s.get("phase") == "Pending" and s.get("conditions"))
    assert "PersistentVolumeClaim later (spec.checkpoint) does not exist" in bench.events("early")
    create_claim(bench.cluster, bench.namespace, "later", bench.folder / "later")
    bench.wait("early", lambda s: s.get("attempt") == 1)


def test_deleting_a_run_removes_its_objects(bench: Bench) -> None:
    """Jobs, pods, Service and ConfigMap go with the run."""
    bench.apply("gone")
    bench.wait("gone", lambda _: len(bench.pods("gone")) == 2)
    bench.cluster.kubectl("delete", "trun", "gone", "-n", bench.namespace)
    kinds = "jobs,pods,services,configmaps"
    selector = "-ldaybreak.dev/run=gone"
    for kind in kinds.split(","):
        bench.cluster.kubectl(
            *("wait", "--for=delete", kind, selector, "-n", bench.namespace, "--timeout=150s")
        )
