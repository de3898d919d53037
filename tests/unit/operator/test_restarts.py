"""What the ends of attempts come to, over a run's life."""

from __future__ import annotations

from training_history import FREE, crash, history


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
