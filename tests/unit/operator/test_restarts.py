"""What the ends of attempts come to, over a run's life."""

from __future__ import annotations

from simulated_api import KEY
from simulated_history import History, spec_of
from simulated_objects import Pod
from simulated_training import Exit
from training_history import FREE, crash, history

from daybreak_trainer.contract import Progress, Termination, rfc3339


def test_a_commit_before_a_suspension_ends_the_row_of_attempts_without_one() -> None:
    """It counts whatever the attempt that made it ended for."""
    made = history(failurePolicy=FREE | {"maxRestarts": 9, "noProgressLimit": 2})
    crash(made, then=80)
    assert made.status["noProgress"] == 1
    made.suspend(True)
    made.operator.advance(40)
    assert (made.status["noProgress"], made.status["fruitless"]) == (0, 0)
    made.suspend(False)
    made.operator.advance(10)
    crash(made)
    assert (made.status["phase"], made.status["noProgress"]) == ("Running", 1)


def _worker(made: History, index: int) -> Pod:
    return next(p for p in made.cluster.pods.values() if p.index == index and p.runs)


def test_evictions_of_workers_that_were_out_of_memory_end_no_run() -> None:
    """The node was: its kubelet took the pod away, and nothing is charged."""
    made = history(failurePolicy=FREE)
    for _ in range(2):
        pod = _worker(made, 0)
        pod.disruption = "TerminationByKubelet"
        pod.end(Exit(137, "OOMKilled"), made.cluster.now)
        made.operator.advance(60)
    status = made.status
    assert (status["phase"], status["interruptions"], status["outOfMemory"]) == ("Running", 2, 0)


def test_last_words_of_other_workers_do_not_set_progress_back() -> None:
    """Their launchers count no steps."""
    made = history()
    made.operator.advance(60)
    before = made.status["progress"]
    now = rfc3339(made.operator.last.now)
    began = Progress(
        run_uid=made.uid(KEY), attempt=1, phase="Starting", started_at=now, updated_at=now
    )
    told = Termination(reason="TrainerError", message="why", exit_code=1, rank=1, progress=began)
    _worker(made, 1).end(Exit(1, message=told.to_json()), made.cluster.now)
    made.operator.publish()
    made.operator.look()
    assert made.status["lastFailure"]["reason"] == "TrainerError"
    assert made.status["progress"]["step"] >= before["step"] > 0
    assert made.status["progress"]["samples"] >= before["samples"]


def test_a_rule_keeps_a_run_off_a_node_whatever_the_health_policy_says() -> None:
    """nodeFailures 0 is for failures that no rule names."""
    health = spec_of()["healthPolicy"] | {"nodeFailures": 0}
    codes = {"operator": "In", "values": [139]}
    rule = {"name": "gpu", "action": "Restart", "avoidNode": True, "onExitCodes": codes}
    policy = FREE | {"maxRestarts": 9, "rules": [rule]}
    made = history(workers={"nodes": 1}, healthPolicy=health, failurePolicy=policy)
    crash(made, 134)
    assert _worker(made, 0).node is made.cluster.nodes["node-0"]
    crash(made, 139)
    assert _worker(made, 0).node is made.cluster.nodes["node-1"]
    crash(made, 134)
    assert _worker(made, 0).node is made.cluster.nodes["node-1"]
