"""Attempts that end one after the other without a new commit."""

from __future__ import annotations

from typing import Any

from simulated_history import History, spec_of


def degraded(made: History) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in made.status["conditions"] if c["type"] == "Degraded")
    return found


def test_it_is_said_until_an_attempt_commits() -> None:
    """While the run waits for the next attempt, while that queues and while it starts."""
    backoff = {"initial": "5s", "max": "5s"}
    policy = {"maxRestarts": 9, "window": "1h", "noProgressLimit": 0, "backoff": backoff}
    made = History(spec_of(failurePolicy=policy), 3, queue=True)
    for _ in range(3):
        made.operator.advance(25)
        assert degraded(made)["status"] == "False"
        made.pod_ends((0, 1))
    made.cluster.admits = False
    phases = set()
    for _ in range(60):
        made.operator.advance(1)
        phases.add(made.status["phase"])
        assert degraded(made)["reason"] == "RepeatedlyInterrupted", made.status
    assert phases == {"Restarting", "Starting", "Queued"}
    assert "the last one: Broken: why" in degraded(made)["message"]
    made.cluster.admits = True
    while made.status.get("checkpoint") is None:
        made.operator.advance(1)
    assert degraded(made)["status"] == "False"
