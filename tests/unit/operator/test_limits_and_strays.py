"""Limits hold for a run whose last attempt's pods do not go."""

from __future__ import annotations

from simulated_history import History, spec_of


def test_a_deadline_is_no_later_for_pods_that_stay() -> None:
    """Their Job is gone, and they hang. As workers at work they have ten minutes more; then they
    are ended as those of any failed run."""
    made = History(spec_of(deadline="2026-01-01T00:05:00Z"), 2)
    made.operator.advance(30)
    (job,) = made.cluster.jobs.values()
    job.gang.hung = True  # type: ignore[union-attr]
    job.gang.told_at = 10**6  # type: ignore[union-attr]  # its watchdog hangs too
    made.delete_job("Orphan")
    made.operator.advance(600)
    assert made.status["phase"] == "Restarting"
    made.operator.advance(400)
    failed = next(c for c in made.status["conditions"] if c["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "DeadlineExceeded")
    assert all(pod.over for pod in made.cluster.pods.values())
    assert made.status["ledger"]["heldSeconds"] > 600
