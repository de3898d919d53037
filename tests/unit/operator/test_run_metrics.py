"""What is counted when a status is written, and which series a run leaves."""

from __future__ import annotations

import itertools
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from daybreak_operator import metrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"daybreak_operator_{name}", labels) or 0.0


def test_each_change_is_counted_once() -> None:
    """An attempt starts, makes its first step, fails and is charged; the next one completes."""
    first = {"number": 1, "createdTime": "2026-01-01T00:00:00Z"}
    stepped = first | {"firstStepTime": "2026-01-01T00:01:30Z"}
    failure = {"reason": "CountedOnce", "attempt": 1}
    ended = stepped | {"endedTime": "2026-01-01T00:02:00Z"}
    last = {"number": 2, "createdTime": "2026-01-01T00:02:10Z"}
    over = last | {"endedTime": "2026-01-01T00:03:00Z"}
    life: list[dict[str, Any]] = [
        {},
        {"attempt": 1, "currentAttempt": first},
        {"attempt": 1, "currentAttempt": stepped, "phase": "Running"},
        {"attempt": 1, "currentAttempt": ended, "restarts": 1, "lastFailure": failure},
        {"attempt": 2, "currentAttempt": last, "restarts": 1, "lastFailure": failure},
        {
            "attempt": 2,
            "currentAttempt": over,
            "restarts": 1,
            "lastFailure": failure,
            "phase": "Complete",
        },
    ]
    names = ("attempts_started_total", "restarts_total", "time_to_first_step_seconds_count")
    before = [value(name) for name in names]
    seconds, complete = (
        value("time_to_first_step_seconds_sum"),
        value("attempts_ended_total", reason="Complete"),
    )
    for was, now in itertools.pairwise(life):
        metrics.count_change(was, now)
        metrics.count_change(now, now)
    assert [value(name) for name in names] == [
        old + more for old, more in zip(before, (2, 1, 1), strict=True)
    ]
    assert value("time_to_first_step_seconds_sum") == seconds + 90
    assert value("attempts_ended_total", reason="CountedOnce") == 1
    assert value("attempts_ended_total", reason="Complete") == complete + 1


def test_ends_that_are_no_failure_are_counted_and_failures_without_an_attempt_are_not() -> None:
    """Evictions, stops and Jobs that somebody has deleted; a recipe that cannot be."""
    names = ("Evicted", "Suspended", "JobLost", "InvalidRecipe")
    before = [value("attempts_ended_total", reason=name) for name in names]
    running = {"currentAttempt": {"number": 1, "createdTime": "2026-01-01T00:00:00Z"}}
    ended = running["currentAttempt"] | {"endedTime": "2026-01-01T00:01:00Z"}
    evicted = [{"type": "Running", "reason": "Evicted"}]
    metrics.count_change(running, {"currentAttempt": ended, "conditions": evicted})
    metrics.count_change(running, {"currentAttempt": ended, "phase": "Suspended"})
    metrics.count_change(running, {"currentAttempt": running["currentAttempt"] | {"number": 2}})
    failure = {"reason": "InvalidRecipe", "attempt": 0}
    metrics.count_change({}, {"lastFailure": failure, "phase": "Failed"})
    after = [value("attempts_ended_total", reason=name) for name in names]
    assert [new - old for old, new in zip(before, after, strict=True)] == [1, 1, 1, 0]


def test_a_worker_cannot_fill_the_memory_with_reasons() -> None:
    """It names why it ended: what is new after many others is `Other`."""
    for number in range(500):
        failure = {"reason": f"Made{number}Up", "attempt": number}
        attempt = {"number": number, "createdTime": "2026-01-01T00:00:00Z"}
        ended = attempt | {"endedTime": "2026-01-01T00:00:00Z"}
        metrics.count_change({}, {"currentAttempt": ended, "lastFailure": failure})
    reasons = {
        sample.labels["reason"]
        for family in metrics.ATTEMPTS_ENDED.collect()
        for sample in family.samples
    }
    assert "Other" in reasons
    assert len(reasons) <= 70


def test_the_series_of_a_deleted_run_go() -> None:
    """Runs are counted when somebody asks."""
    registry = CollectorRegistry()
    runs = {
        name: {
            "metadata": {"namespace": "n", "name": name},
            "status": {"phase": "Complete", "evaluation": {"alignmentByTag": {"all": "0.5"}}},
        }
        for name in "ab"
    }
    registry.register(metrics.RunCollector(lambda: list(runs.values())))
    labels = {"namespace": "n", "run": "a", "tag": "all"}
    assert registry.get_sample_value("daybreak_operator_runs", {"phase": "Complete"}) == 2
    assert registry.get_sample_value("daybreak_operator_run_alignment_ratio", labels) == 0.5
    del runs["a"]
    assert registry.get_sample_value("daybreak_operator_runs", {"phase": "Complete"}) == 1
    assert registry.get_sample_value("daybreak_operator_run_alignment_ratio", labels) is None
