"""An operator that was away: what happened meanwhile happened then, not when it came back."""

from __future__ import annotations

import pytest
from simulated_objects import stamp
from training_history import condition, history

HOURS = 3600


def test_a_run_that_completes_meanwhile_held_nothing_after_its_end() -> None:
    made = history()
    made.down(3 * HOURS)
    made.operator.advance(3 * HOURS + 60)
    ledger = made.status["ledger"]
    assert made.status["phase"] == "Complete"
    assert abs(ledger["heldSeconds"] - made.held_seconds) <= 5
    assert ledger["accountedUntil"] == made.status["currentAttempt"]["endedTime"]


def test_an_attempt_that_ends_meanwhile_spends_no_budget_after_its_end() -> None:
    made = history(budget={"duration": "1h"})
    made.pod_ends((0, 143))
    made.down(2 * HOURS)
    made.operator.advance(2 * HOURS + 30)
    assert (made.status["phase"], made.status["attempt"]) == ("Starting", 2)
    assert 30 <= made.status["ledger"]["heldSeconds"] <= made.held_seconds


def test_pods_that_go_meanwhile_have_held_devices_for_their_grace_period_at_most() -> None:
    made = history(budget={"duration": "1h"})
    made.suspend(True)
    made.operator.advance(1)
    made.down(2 * HOURS)
    made.operator.advance(2 * HOURS + 30)
    assert condition(made, "Suspended")["status"] == "True"
    assert made.status["ledger"]["heldSeconds"] <= made.held_seconds + made.cluster.grace


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_an_end_lies_behind_what_was_seen_before_it_whatever_the_nodes_clock(skew: float) -> None:
    made = history(skew=skew)
    made.operator.advance(60)
    seen = made.status["progress"]["advancedTime"]
    made.pod_ends((0, 1))
    made.operator.advance(3)
    assert made.status["currentAttempt"]["firstStepTime"] < seen
    assert seen <= made.status["currentAttempt"]["endedTime"] <= stamp(made.cluster.now)


def test_an_attempt_that_is_evicted_meanwhile_has_held_nothing_since() -> None:
    made = history(queue=True, budget={"duration": "1h"})
    made.evict(0)
    made.cluster.admits = False
    made.down(2 * HOURS)
    made.operator.advance(2 * HOURS + 30)
    assert (made.status["phase"], made.status["attempt"]) == ("Queued", 2)
    assert made.status["ledger"]["heldSeconds"] <= made.held_seconds + made.cluster.grace
