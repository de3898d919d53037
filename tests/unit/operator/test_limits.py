"""Limits that end a run whatever its workers do."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_history import History, spec_of
from simulated_training import Exit
from training_history import FREE, condition, crash, history

from daybreak_trainer.contract import Termination


def test_a_run_that_was_never_admitted_is_not_active() -> None:
    """Nor are the pauses between its attempts to be."""
    made = History(spec_of(workers={"nodes": 2}, activeDeadline="3m"), 1)
    made.operator.advance(4000)
    assert (made.status["phase"], made.status["ledger"]["heldSeconds"]) == ("Starting", 0)
    assert made.status["ledger"]["lostSeconds"]["restart"] > 180


def test_a_limit_that_passes_between_attempts_is_what_ended_the_run() -> None:
    """Not the failure before it, which it names too."""
    pauses = FREE | {"backoff": {"initial": "5m", "max": "10m"}}
    made = history(deadline="2026-01-01T00:01:00Z", failurePolicy=pauses)
    crash(made, then=90)
    failure = made.status["lastFailure"]
    assert (failure["reason"], failure["class"]) == ("DeadlineExceeded", "User")
    assert failure["message"].endswith("; the last attempt: Broken: why")
    assert condition(made, "Failed")["reason"] == "DeadlineExceeded"


def _ended_by_its_limit(changes: dict[str, Any]) -> History:
    """A run whose trainer came to the deadline that it was told, after the spec was changed."""
    made = history(deadline="2026-01-01T00:02:00Z")
    made.operator.advance(80)
    made.limit(changes)
    words = "spec.deadline was used up at step 90"
    told = Termination(reason="LimitReached", message=words, exit_code=93)
    for pod in [pod for pod in made.cluster.pods.values() if pod.runs]:
        pod.end(Exit(93, message=told.to_json()), made.cluster.now)
    made.operator.advance(2)
    return made


def test_a_limit_that_was_raised_meanwhile_ends_no_run() -> None:
    """A trainer reads its limits when its attempt begins."""
    made = _ended_by_its_limit({"deadline": "2026-02-01T00:00:00Z"})
    made.operator.advance(30)
    status = made.status
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Running", 2, 0)
    assert status["lastFailure"]["reason"] == "LimitReached"
    assert any("the run goes on" in note.message for note in made.api.recorded)


@pytest.mark.parametrize(
    "changes", [{}, {"scaleCooldown": "1h"}, {"deadline": "2026-01-01T00:01:00Z"}]
)
def test_limits_that_hold_end_the_run(changes: dict[str, Any]) -> None:
    """The old ones, or new ones that are reached too."""
    made = _ended_by_its_limit(changes)
    assert (made.status["phase"], made.status["attempt"]) == ("Failed", 1)
