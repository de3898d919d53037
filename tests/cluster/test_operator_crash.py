"""The operator is killed between any two of its calls to the API server: nothing comes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from random import Random
from threading import Event

import pytest
from crashing_operator import Plan
from lives import HOLDS_AT, STEPS, Life, Stage, operator_kubeconfig, own_operators, set_up, spec

from daybreak_devcluster import faults
from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_STAGES = 4
"""Namespaces in which lives are played side by side."""


@pytest.fixture(scope="module")
def stages(devcluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Stage]]:
    folder = tmp_path_factory.mktemp("stages")
    with own_operators(devcluster), ExitStack() as stack:
        kubeconfig = operator_kubeconfig(devcluster, folder)
        yield [
            stack.enter_context(set_up(devcluster, f"stage-{n}", folder / f"stage-{n}", kubeconfig))
            for n in range(_STAGES)
        ]


@pytest.fixture(scope="module")
def undisturbed(stages: list[Stage]) -> Life:
    """A life in which nothing happens to the operator."""
    life = stages[0].play("calm", Plan())
    assert life.status["phase"] == "Complete", life
    assert (life.status["attempt"], life.status["restarts"]) == (3, 1)
    assert [len(uids) for uids in life.jobs.values()] == [1, 1, 1]
    assert [line[0] for line in life.journal] == list(range(1, STEPS + 1))
    stages[0].delete("calm")
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
    assert life.events == undisturbed.events, what


def _sweep(
    stages: list[Stage], undisturbed: Life, plans: Callable[[int], Plan], every: int = 1
) -> list[Life]:
    """A life for the 1st, 2nd, 3rd ... writing call of an operator (or every so many), up to the
    first call that is never made; each life is compared with the undisturbed one."""
    numbers = itertools.count(1, every)
    over = Event()

    def play(stage: Stage) -> list[Life]:
        lives = []
        while not over.is_set():
            number = next(numbers)
            name = f"{'before' if plans(1).kill_before else 'after'}-{number}"
            try:
                life = stage.play(name, plans(number))
                _same(life, undisturbed)
            except BaseException:
                over.set()
                raise
            stage.delete(name)
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


def _kinds(lives: list[Life]) -> set[str]:
    """What the operator was doing when it was killed, such as `POST jobs`."""
    kinds = set()
    for life in lives:
        (killed,) = life.killed
        _, method, path, *_ = killed.split()
        parts = path.partition("?")[0].split("/namespaces/")[1].split("/")
        kinds.add(f"{method} {parts[-1] if parts[-1] == 'status' else parts[1]}")
    return kinds


def _before(number: int) -> Plan:
    return Plan(kill_before=number)


def _after(number: int) -> Plan:
    return Plan(kill_after=number)


@pytest.mark.parametrize("plans", [_before, _after], ids=["before", "after"])
def test_an_operator_killed_at_a_call_loses_nothing(
    stages: list[Stage], undisturbed: Life, plans: Callable[[int], Plan]
) -> None:
    """Every tenth call of a run's life: the run ends as if nothing had been, with one Job for
    each attempt, each failure charged once, each Event told once, the same samples trained."""
    assert len(_sweep(stages, undisturbed, plans, every=10)) >= 3


@pytest.mark.e2e
@pytest.mark.parametrize("plans", [_before, _after], ids=["before", "after"])
def test_an_operator_killed_at_any_call_loses_nothing(
    stages: list[Stage], undisturbed: Life, plans: Callable[[int], Plan]
) -> None:
    """The same for every single call."""
    began = time.monotonic()
    lives = _sweep(stages, undisturbed, plans)
    print(f"killed at {len(lives)} calls, {time.monotonic() - began:.0f} s: {_kinds(lives)}")
    assert _kinds(lives) == {
        *("POST events", "PUT status", "POST configmaps", "POST services"),
        *("POST networkpolicies", "POST jobs", "DELETE jobs"),
    }


def test_an_operator_that_dies_again_and_again_gets_there(
    stages: list[Stage], undisturbed: Life
) -> None:
    """None lives for more than four calls; each goes on where the one before it was killed."""
    life = stages[0].play("mortal", Plan(kill_after=4, again=True))
    assert len(life.killed) > 4
    _same(life, undisturbed)
    stages[0].delete("mortal")
    stages[0].wait_until_empty()


def test_errors_of_the_api_server_are_tried_again(stages: list[Stage], undisturbed: Life) -> None:
    """A tenth of all requests fail or lose their answer, and others write to the run meanwhile:
    no write is lost and none is done twice."""
    stage = stages[0]
    with stage.meddling("troubled"):
        life = stage.play("troubled", Plan(troubles=("500", "503", "429", "lost")))
    assert any(call.endswith("lost") for call in life.calls)
    _same(life, undisturbed)
    stage.delete("troubled")
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
    """Pods deleted at random steps: the last step is committed, and the samples go on from it. None
    is so late that a run could end before its pod's deletion is heard of."""
    stage = stages[0]
    stage.operate(Plan())
    steps = Random(seed).sample(range(1, STEPS // 2), k=8)

    def play(step: int) -> None:
        name = f"stopped-{step}"
        stage.bench.apply(name, **spec(1, {1: {"step_seconds": 0.1}}))
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
