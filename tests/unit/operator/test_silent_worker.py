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
