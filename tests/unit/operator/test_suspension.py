"""`spec.suspend` outside of an attempt at work: between two, and before the first."""

from __future__ import annotations

from typing import Any

from simulated_history import History, spec_of


def suspended(made: History) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in made.status["conditions"] if c["type"] == "Suspended")
    return found


def events(made: History) -> list[str]:
    return [note.reason for note in made.api.recorded if note.reason in ("Suspending", "Resumed")]


def test_a_run_whose_last_attempt_stops_is_suspended_at_once() -> None:
    """The condition says that it stops, until the pods are gone; an Event says when it began."""
    made = History(spec_of(), 2)
    made.operator.advance(30)
    made.pod_ends((0, 1))
    made.operator.advance(2)
    assert made.status["phase"] == "Restarting"
    made.suspend(True)
    made.operator.advance(1)
    assert (made.status["phase"], suspended(made)["reason"]) == ("Suspended", "Stopping")
    assert events(made) == ["Suspending"]
    made.operator.advance(60)
    assert suspended(made)["status"] == "True"
    made.suspend(False)
    made.operator.advance(60)
    assert (made.status["phase"], events(made)) == ("Running", ["Suspending", "Resumed"])


def test_a_run_that_is_resumed_while_it_stops_goes_on() -> None:
    """Once the pods are gone."""
    made = History(spec_of(), 2)
    made.operator.advance(30)
    made.suspend(True)
    made.operator.advance(1)
    made.suspend(False)
    made.operator.advance(60)
    assert (made.status["phase"], events(made)) == ("Running", ["Suspending", "Resumed"])


def test_the_suspension_of_a_preparation_is_an_event() -> None:
    """As that of an attempt is."""
    made = History(spec_of(prepare=1), 2)
    made.operator.advance(10)
    made.suspend(True)
    made.operator.advance(30)
    assert (made.status["phase"], suspended(made)["status"]) == ("Suspended", "True")
    assert events(made) == ["Suspending"]


def test_a_run_that_is_made_suspended_has_nothing_to_stop() -> None:
    """So no Event says that it does."""
    made = History(spec_of(suspend=True), 2)
    made.operator.advance(30)
    assert (made.status["phase"], events(made)) == ("Suspended", [])
