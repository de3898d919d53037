"""A worker 0 that does not answer the operator: what is said of it, and when."""

from __future__ import annotations

from simulated_history import History, spec_of


def degraded(made: History) -> str | None:
    """The reason, while it is true."""
    told = next(c for c in made.status["conditions"] if c["type"] == "Degraded")
    return told["reason"] if told["status"] == "True" else None


def test_a_resumed_run_that_queues_has_no_silent_worker() -> None:
    """It has none at all; the last that was heard is of the attempt before."""
    made = History(spec_of(), 3, queue=True)
    made.operator.advance(30)
    made.suspend(True)
    made.operator.advance(600)
    made.suspend(False)
    made.cluster.admits = False
    made.operator.advance(300)
    assert (made.status["phase"], degraded(made)) == ("Queued", None)
    made.cluster.admits = True
    made.operator.advance(10)
    assert (made.status["phase"], degraded(made)) == ("Starting", None)


def test_a_worker_that_never_could_be_reached_is_left_alone() -> None:
    """Traffic to the pods is blocked, say: that is said, and the run trains to its end. The
    launcher's own clocks end one that does not start."""
    health = spec_of()["healthPolicy"] | {"startupDeadline": "50s"}
    made = History(spec_of(healthPolicy=health), 2)
    made.unreachable(10**6)
    made.operator.advance(115)
    assert (made.status["phase"], degraded(made)) == ("Starting", None)
    made.operator.advance(30)
    assert (made.status["phase"], degraded(made)) == ("Starting", "WorkerSilent")
    made.operator.advance(150)
    assert (made.status["phase"], made.status["attempt"]) == ("Complete", 1)
    assert made.status.get("restarts", 0) == 0


def test_a_start_up_that_misses_one_question_is_not_silent() -> None:
    """It was heard, and says the same until its first step."""
    health = spec_of()["healthPolicy"] | {"startupDeadline": "10m"}
    made = History(spec_of(healthPolicy=health), 2)
    made.operator.advance(10)
    made.hang(0)
    made.operator.advance(300)
    made.unreachable(40)
    made.operator.advance(30)
    assert (made.status["phase"], degraded(made)) == ("Starting", None)
