"""The operator is killed between any two of its calls to the API server: nothing comes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from random import Random
from threading import Event

import pytest
from crashing_operator import Plan
from kubernetes import client
from lives import (
    HOLDS_AT,
    STEPS,
    Life,
    Stage,
    later_schema,
    operator_kubeconfig,
    own_operators,
    set_up,
    spec,
)
from rights import METHODS, WRITING, Right, granted, right

from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_STAGES = 8
"""Namespaces in which lives are played side by side. Much of a life is waiting for time limits."""
_TROUBLES = ("lost", "500", "503", "429")


@pytest.fixture(scope="module")
def stages(devcluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stage]]:
    folder = tmp_path_factory.mktemp("stages")
    with own_operators(devcluster), later_schema(devcluster), ExitStack() as stack:
        kubeconfig = operator_kubeconfig(devcluster, folder)
        yield [
            stack.enter_context(set_up(devcluster, f"stage-{n}", folder / f"stage-{n}", kubeconfig))
            for n in range(_STAGES)
        ]


@pytest.fixture(autouse=True)
def tidy(stages: list[Stage]) -> Iterator[None]:
    """What a test that fails leaves behind is not the next one's trouble."""
    yield
    for stage in stages:
        stage.clear()


@pytest.fixture(scope="module")
def undisturbed(stages: list[Stage]) -> Life:
    """A life in which nothing happens to the operator."""
    life = stages[0].play("calm", Plan())
    assert life.status["phase"] == "Complete", life
    assert (life.status["attempt"], life.status["restarts"]) == (3, 1)
    assert [len(uids) for uids in life.jobs.values()] == [1, 1, 1]
    assert [line[0] for line in life.journal] == list(range(1, STEPS + 1))
    return life


def _same(life: Life, undisturbed: Life) -> None:
    what = f"{life.killed}\n{life.log}"
    assert life.status["phase"] == "Complete", what
    for key in ("attempt", "restarts", "recipeHash"):
        assert life.status[key] == undisturbed.status[key], f"{key} {life.status} {what}"
    for key in ("lastFailure", "progress", "checkpoint"):
        assert life.status[key]["step"] == undisturbed.status[key]["step"], f"{key} {what}"
    numbers = [name.rpartition("-")[2] for name in life.jobs]
    assert numbers == ["1", "2", "3"], f"{life.jobs} {what}"
    assert all(len(uids) == 1 for uids in life.jobs.values()), f"{life.jobs} {what}"
    assert life.together == 1, what
    assert life.journal == undisturbed.journal, what
    # A run whose looks fail often enough in a row is told so.
    told = {event: n for event, n in life.events.items() if event[0] != "ReconcileFailed"}
    assert told == undisturbed.events, what


def _sweep(stages: list[Stage], undisturbed: Life, plans: Iterator[Plan]) -> list[Life]:
    """A life for each plan, up to the first whose call is never made; each life is compared with
    the undisturbed one."""
    over = Event()

    def play(stage: Stage) -> list[Life]:
        lives = []
        while not over.is_set() and (plan := next(plans, None)) is not None:
            when = "after" if plan.kill_before is None else "before"
            name = f"{when} {plan.kill_before or plan.kill_after} {plan.since}".strip()
            try:
                life = stage.play(name.lower().replace(" ", "-"), plan)
                _same(life, undisturbed)
            except BaseException:
                over.set()
                raise
            if life.killed:
                lives.append(life)
            else:
                over.set()
        return lives

    with ThreadPoolExecutor(len(stages)) as pool:
        lives = list(itertools.chain.from_iterable(pool.map(play, stages)))
    for stage in stages:
        stage.wait_until_empty()
    return lives


def _killed_at(lives: list[Life]) -> set[Right | None]:
    """What the operator was doing when it was killed, such as `create`, `jobs`."""
    killed = [call.split() for life in lives for call in life.killed]
    return {right(method, path) for _, method, path, *_ in killed}


def test_an_operator_killed_at_a_call_loses_nothing(stages: list[Stage], undisturbed: Life) -> None:
    """Some calls of a run's life: the run ends as if nothing had been, with one Job for each
    attempt, each failure charged once, each Event told once, the same samples trained."""
    chosen = (Plan(kill_before=4), Plan(kill_after=9), Plan(kill_before=16), Plan(kill_after=24))
    assert len(_sweep(stages, undisturbed, iter(chosen))) == len(chosen)


@pytest.mark.e2e
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
def test_an_operator_killed_at_any_call_loses_nothing(
    stages: list[Stage], undisturbed: Life, when: str
) -> None:
    """The same for every single call, and for the first of each kind that the operator has a right
    to, but for those of its Lease (`test_operator_failover`): by their numbers alone, which differ
    from life to life, one that is made once may be missed."""

    def plan(number: int) -> Plan:
        return Plan(**{when: number})

    began = time.monotonic()
    writes = {(verb, what) for verb, what in granted() if verb in WRITING and what != "leases"}
    firsts = [Plan(**{when: 1}, since=f"{METHODS[v]} {w.split('/')[-1]}") for v, w in writes]
    lives = _sweep(stages, undisturbed, iter(firsts))
    assert _killed_at(lives) == writes
    # Not a generator, which several threads must not ask at a time.
    lives += _sweep(stages, undisturbed, map(plan, itertools.count(1)))
    print(f"killed at {len(lives)} calls, {time.monotonic() - began:.0f} s")


def test_an_operator_that_dies_again_and_again_gets_there(
    stages: list[Stage], undisturbed: Life
) -> None:
    """None lives for more than four calls; each goes on where the one before it was killed."""
    life = stages[0].play("mortal", Plan(kill_after=4, again=True))
    assert len(life.killed) > 4
    _same(life, undisturbed)
    stages[0].wait_until_empty()


def test_errors_of_the_api_server_are_tried_again(stages: list[Stage], undisturbed: Life) -> None:
    """A tenth of all requests fail or lose their answer, and others write to the run meanwhile:
    no write is lost and none is done twice."""
    stage = stages[0]
    with stage.meddling("troubled"):
        life = stage.play("troubled", Plan(troubles=_TROUBLES))
    assert set(_TROUBLES) <= {call.split()[-1] for call in life.calls}
    _same(life, undisturbed)
    stage.wait_until_empty()


def test_a_job_deleted_by_hand_is_replaced_by_the_next_attempt(
    stages: list[Stage], undisturbed: Life
) -> None:
    """With its pods or without them: never beside pods that still work, and nothing is charged."""
    stage = stages[0]
    stage.operate(Plan())
    for how in ("background", "orphan"):
        stage.bench.apply(how, **spec(1, {1: {"hold_at": HOLDS_AT}}))
        for run in stage.states(how):
            status = run.get("status", {})
            if status.get("phase") == "Running" and status["attempt"] == 1:
                break
        (pod,) = stage.bench.pods(how)
        stage.delete_job(f"{how}-1", how)
        if how == "orphan":
            faults.kill_process(stage.bench.cluster, stage.bench.namespace, pod)
        status = stage.end(how)
        assert (status["phase"], status["attempt"], status["restarts"]) == ("Complete", 2, 0)
        assert stage.journal(how) == undisturbed.journal
        stage.delete(how)
    stage.bench.cluster.kubectl("delete", "pods", "--all", "-n", stage.bench.namespace)
    stage.wait_until_empty()


def test_a_stop_at_any_step_is_a_checkpoint_and_a_free_restart(
    stages: list[Stage], undisturbed: Life, seed: int
) -> None:
    """Pods deleted at random steps: the last step is committed, and the samples go on from it. The
    runs wait at a later one, for they must not end before their pods' deletion is heard of."""
    stage = stages[0]
    stage.operate(Plan())
    steps = Random(seed).sample(range(1, STEPS // 2), k=8)

    def play(step: int) -> None:
        name = f"stopped-{step}"
        stage.bench.apply(name, **spec(1, {1: {"step_seconds": 0.1, "hold_at": HOLDS_AT}}))
        pod = stage.bench.worker_at_step(name, step)
        stage.bench.cluster.kubectl("delete", "pod", pod, "-n", stage.bench.namespace)
        status = stage.end(name)
        assert (status["phase"], status["attempt"], status["restarts"]) == ("Complete", 2, 0)
        assert status["lastFailure"]["step"] >= step
        assert stage.journal(name) == undisturbed.journal
        stage.delete(name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(play, steps))
    stage.wait_until_empty()


@contextmanager
def _silent_node(stage: Stage, name: str) -> Iterator[None]:
    """A node that nobody is at: what is sent there neither starts nor ends. Other pods keep off."""
    core = client.CoreV1Api(stage.api)
    ready = {"type": "Ready", "status": "True", "reason": "Up", "message": "up"}
    room = {"cpu": "8", "memory": "8Gi", "pods": "10"}
    core.create_node(
        {
            "metadata": {"name": name, "labels": {name: "silent"}},
            "spec": {"taints": [{"key": "silent", "effect": "NoSchedule"}]},
            "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
        }
    )
    try:
        yield
    finally:
        core.delete_node(name)


def _play_stuck(stage: Stage, name: str, plan: Plan) -> Life:
    """A run whose first attempt's pod is on a node that falls silent; others of the run's pods
    find another node."""
    core, changes_of_jobs = client.CoreV1Api(stage.api), stage.follow_jobs()
    (alive, *_) = stage.bench.cluster.info.nodes
    changes = spec(1, {})
    place = {"nodeSelector": {name: "silent"}, "tolerations": [{"operator": "Exists"}]}
    changes["workers"]["template"]["spec"] |= place
    with _silent_node(stage, name):
        stage.operate(plan)
        stage.apply(name, **changes, terminationGracePeriod="1s")
        stage.until(name, lambda s: (s.get("currentAttempt") or {}).get("admittedTime"))
        core.patch_node(name, {"metadata": {"labels": {name: None}}})
        core.patch_node(alive, {"metadata": {"labels": {name: "silent"}}})
        (pod,) = stage.live_pods(name)
        stage.lose(pod)
        status = stage.end(name)
        core.patch_node(alive, {"metadata": {"labels": {name: None}}})
    return stage.life(name, status, changes_of_jobs)


@pytest.mark.e2e
def test_a_pod_that_nobody_ends_is_forced_once(stages: list[Stage], undisturbed: Life) -> None:
    """It is deleted at once, a minute after its node should have ended it, and only then comes the
    next attempt, free of charge: whether or not the operator is killed as it does that."""
    plans = [
        Plan(**{when: number}, since="DELETE pods")
        for when in ("kill_before", "kill_after")
        for number in range(1, 5)
    ]
    names = [f"stuck-{number}" for number in range(len(plans))]
    with ThreadPoolExecutor(len(stages)) as pool:
        for life in pool.map(_play_stuck, stages, names, plans):
            what = f"{life.status} {life.calls}\n{life.log}"
            assert life.killed, what
            assert life.status["phase"] == "Complete", what
            assert (life.status["attempt"], life.status["restarts"]) == (2, 0), what
            assert life.status["interruptions"] == 1, what
            assert [len(uids) for uids in life.jobs.values()] == [1, 1], what
            assert life.together == 1, what
            assert life.journal == undisturbed.journal, what
