"""Limits that end a run whatever its workers do."""

from __future__ import annotations

from simulated_history import History, spec_of


def test_a_run_that_was_never_admitted_is_not_active() -> None:
    """Nor are the pauses between its attempts to be."""
    made = History(spec_of(workers={"nodes": 2}, activeDeadline="3m"), 1)
    made.operator.advance(4000)
    assert (made.status["phase"], made.status["ledger"]["heldSeconds"]) == ("Starting", 0)
    assert made.status["ledger"]["lostSeconds"]["restart"] > 180
