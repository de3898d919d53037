"""A pod that somebody deletes: not the run's failure, however it ends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from daybreak_operator.failures import classify
from daybreak_operator.observation import JobView, PodView

JOB: dict[str, Any] = {
    "metadata": {"name": "r-1", "uid": "job", "labels": {"daybreak.dev/attempt": "1"}},
    "spec": {"parallelism": 1},
}


def killed(reason: str = "Error", **metadata: str) -> PodView:
    """Worker 0, whose trainer got SIGKILL and left no word."""
    ended = {"exitCode": 137, "finishedAt": "2026-01-01T00:00:00Z", "reason": reason}
    return PodView.of(
        {
            "metadata": {"name": "r-1-0", "uid": "u", "labels": JOB["metadata"]["labels"]}
            | metadata,
            "status": {
                "phase": "Failed",
                "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
            },
        }
    )


def test_a_commit_that_takes_longer_than_the_grace_period_is_not_charged() -> None:
    """Volcano's evictions and `kubectl delete pod` look so; the message says what to raise."""
    deleted = killed(deletionTimestamp=datetime(2026, 1, 1, tzinfo=UTC).isoformat())
    failure = classify(JobView.of(JOB), [deleted])
    assert failure is not None
    assert (failure.verdict, failure.reason) == ("uncharged", "GracePeriodExceeded")
    assert "terminationGracePeriod" in failure.message


def test_a_kill_out_of_the_blue_is_charged() -> None:
    failure = classify(JobView.of(JOB), [killed()])
    assert failure is not None
    assert failure.verdict == "charged"


def test_a_node_that_was_down_for_a_moment_is_not_the_runs_failure() -> None:
    """The node is back before anybody missed it, and its kubelet finds no container."""
    failure = classify(JobView.of(JOB), [killed("ContainerStatusUnknown")])
    assert failure is not None
    assert (failure.verdict, failure.reason) == ("uncharged", "NodeLost")
    assert failure.blames_node is False
