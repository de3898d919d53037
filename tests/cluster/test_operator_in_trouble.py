"""The operator's own world fails: its API server, its watches, its clock, its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from api_proxy import ApiProxy, Call, Fault, nothing, now_and_then
from crashing_operator import Plan
from lives import (
    STEPS,
    Json,
    Stage,
    later_schema,
    operator_kubeconfig,
    own_operators,
    set_up,
    spec,
)

from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.nodespec import numbered_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_TROUBLES = (
    Fault(status=429, retry_after=1),
    Fault(status=500),
    Fault(lost=True),
    Fault(delay_seconds=1),
)


@pytest.fixture(scope="module")
def proxy(devcluster: Cluster) -> Iterator[ApiProxy]:
    with own_operators(devcluster), later_schema(devcluster), ApiProxy(devcluster) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def stage(
    devcluster: Cluster, proxy: ApiProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("trouble")
    kubeconfig = operator_kubeconfig(devcluster, folder, proxy.url)
    with set_up(devcluster, "trouble", folder / "trouble", kubeconfig) as stage:
        yield stage


@pytest.fixture
def well(proxy: ApiProxy, stage: Stage) -> Iterator[None]:
    """The proxy lets everything pass again when the test is over, and no run is left."""
    yield
    proxy.chooses = nothing
    proxy.thaw()
    stage.clear()


def _came_through(stage: Stage, name: str, attempts: int, restarts: int) -> None:
    status = stage.end(name)
    assert status["phase"] == "Complete", stage.log(40)
    assert (status["attempt"], status["restarts"]) == (attempts, restarts), status
    assert [line[0] for line in stage.journal(name)] == list(range(1, STEPS + 1))
    assert len(stage.job_names(name)) <= 1


@pytest.mark.usefixtures("well")
def test_refusals_and_lost_answers_cost_nothing(stage: Stage, proxy: ApiProxy, seed: int) -> None:
    """A tenth of all calls, watches too, ends in 429, 500, no answer, or late; of writes in 409."""
    at_random = now_and_then(10, Random(seed), *_TROUBLES)
    conflicts = now_and_then(10, Random(seed), Fault(status=409))
    proxy.chooses = lambda call: at_random(call) or (conflicts(call) if call.writing else None)
    before = len(proxy.calls)
    life = stage.play("refused", Plan())
    refused = {call.status for call in proxy.calls[before:] if call.faulty}
    assert {0, 409, 429, 500} <= refused
    assert life.status["phase"] == "Complete", life.log
    assert (life.status["attempt"], life.status["restarts"]) == (3, 1), life
    assert life.together == 1


@pytest.mark.usefixtures("well")
def test_watches_that_break_lose_no_event(stage: Stage, proxy: ApiProxy) -> None:
    """They end as the server's do, and in the middle of an event, all through a run's life."""
    stage.operate(Plan())
    stage.apply("torn", **spec(2, {1: {"fail_at": 12}, 2: {"step_seconds": 0.1}}))
    for number, run in enumerate(stage.states("torn")):
        proxy.drop_watches(torn=number % 2 == 0)
        if run.get("status", {}).get("phase") in ("Complete", "Failed"):
            break
    _came_through(stage, "torn", 2, 1)


@pytest.mark.usefixtures("well")
def test_a_watch_that_fails_for_good_ends_the_process(stage: Stage, proxy: ApiProxy) -> None:
    """What no retry cures ends the operator, and does not leave it deaf; a fresh one goes on."""
    refused: list[Call] = []

    def once(call: Call) -> Fault | None:
        if not call.watch or "trainingruns" not in call.path or refused:
            return None
        refused.append(call)
        return Fault(status=400)

    proxy.chooses = once
    stage.operate(Plan())
    stage.apply("deaf", **spec(1, {}))
    _came_through(stage, "deaf", 1, 0)
    assert refused


@pytest.mark.usefixtures("well")
def test_an_api_server_that_does_not_answer_is_waited_for(stage: Stage, proxy: ApiProxy) -> None:
    """It is frozen while the first attempt fails; the operator learns of it afterwards."""
    stage.operate(Plan())
    stage.apply("frozen", **spec(1, {1: {"fail_at": 20, "step_seconds": 0.2}}))
    stage.until("frozen", lambda s: s.get("phase") == "Running")
    proxy.freeze()
    stage.wait_for_pods_to_go("frozen")
    proxy.thaw()
    _came_through(stage, "frozen", 2, 1)


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wrong_clock_changes_no_decision(stage: Stage, hours: int) -> None:
    """The operator's is an hour off: nothing times out that should not, everything ends, and the
    ledger never has more than the wall clock."""
    life = stage.play(
        f"clock-{'ahead' if hours > 0 else 'behind'}", Plan(ahead_seconds=3600 * hours)
    )
    assert life.status["phase"] == "Complete", life.log
    assert (life.status["attempt"], life.status["restarts"]) == (3, 1), life
    assert [line[0] for line in life.journal] == list(range(1, STEPS + 1))
    assert life.together == 1
    ledger = life.status["ledger"]
    assert min([ledger["productiveSeconds"], *ledger["lostSeconds"].values()]) >= 0


@pytest.mark.e2e
@pytest.mark.usefixtures("well")
def test_an_api_server_that_restarts_is_found_again(stage: Stage) -> None:
    """Runs at work do not notice; one that fails meanwhile is restarted afterwards."""
    stage.operate(Plan())
    stage.apply("calm", **spec(2, {1: {"step_seconds": 0.2}}))
    stage.apply("fails", **spec(1, {1: {"fail_at": 20, "step_seconds": 0.2}}))
    for name in ("calm", "fails"):
        stage.until(name, lambda s: s.get("phase") == "Running")
    faults.restart_apiserver(stage.bench.cluster)
    _came_through(stage, "calm", 1, 0)
    _came_through(stage, "fails", 2, 1)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Stage]:
    """A cluster of two nodes with room for one worker each, and an operator that may read nodes."""
    tmp_path.chmod(0o755)
    with Cluster(tmp_path / "state", numbered_nodes(2)) as cluster, own_operators(cluster):
        for verb in (
            ("clusterrole", "nodes", "--verb=get,list,watch", "--resource=nodes"),
            (
                *("clusterrolebinding", "nodes", "--clusterrole=nodes"),
                "--serviceaccount=daybreak-system:daybreak-operator",
            ),
        ):
            cluster.kubectl("create", *verb)
        kubeconfig = operator_kubeconfig(cluster, tmp_path)
        with set_up(cluster, "nodes", tmp_path / "nodes", kubeconfig) as stage:
            stage.operate(Plan())
            yield stage


@pytest.mark.e2e
def test_a_lost_node_makes_a_run_smaller_until_it_is_back(nodes: Stage) -> None:
    """The node's power is cut: the attempt ends as NodeLost and free of charge, its pod that nobody
    can end is forced, the run goes on with the other node, and grows back when the node returns."""
    cluster = nodes.bench.cluster
    # Each attempt makes some steps and waits for what comes.
    changes: Json = spec(2, {number: {"hold_at": 5 * number} for number in range(1, 7)})
    changes["workers"] |= {"minNodes": 1, "resources": {"requests": {"cpu": "5"}}}
    nodes.apply(
        "shrinks",
        **changes,
        scaleCooldown="5s",
        terminationGracePeriod="5s",
        healthPolicy={"schedulingDeadline": "5s"},
    )
    nodes.until("shrinks", lambda s: s.get("phase") == "Running")
    lost = next(n for n in cluster.info.nodes if n != nodes.node_of_worker("shrinks", 0))
    faults.drop_node(cluster, lost)
    began = time.monotonic()
    status = nodes.until(
        "shrinks",
        lambda s: s.get("phase") == "Running" and s["currentAttempt"]["nodes"] == 1,
    )
    print(f"on one node {time.monotonic() - began:.0f} s after the node was lost")
    assert status["restarts"] == 0
    assert status["interruptions"] >= 1
    assert (status["scaling"]["nodes"], status["scaling"]["reason"]) == (1, "NodesLost")
    faults.return_node(cluster, lost)
    nodes.until(
        "shrinks",
        lambda s: s.get("phase") == "Running" and s["currentAttempt"]["nodes"] == 2,
    )
    run = nodes.get("shrinks")
    assert run["spec"]["workers"]["nodes"] == 2
    assert run["status"]["scaling"]["reason"] == "GrownBack"
    nodes.delete("shrinks")
    nodes.wait_until_nothing_is_left("shrinks")
