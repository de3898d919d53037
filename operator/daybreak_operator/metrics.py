"""What the operator measures of itself and of its runs. No run's name is on a counter: those last
as long as the process."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_MAX_REASONS = 64
_LOOK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_START_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)

RECONCILES = Counter(
    "daybreak_operator_reconciles", "Reconciliations, by how they ended.", ("result",)
)
RECONCILE_SECONDS = Histogram(
    "daybreak_operator_reconcile_seconds",
    "Duration of a reconciliation.",
    buckets=_LOOK_BUCKETS,
)
QUEUE_LENGTH = Gauge("daybreak_operator_queue_length", "Runs waiting to be looked at.")
QUEUE_AGE = Gauge(
    "daybreak_operator_queue_oldest_seconds", "How long the run that comes next has been waiting."
)
API_REQUESTS = Counter(
    "daybreak_operator_api_requests",
    "Requests to the API server, by their answer's code; none: there was no answer.",
    ("verb", "resource", "code"),
)
STATUS_CONFLICTS = Counter(
    "daybreak_operator_status_conflicts",
    "Status writes that were refused because the run had changed.",
)
LEADER = Gauge("daybreak_operator_leader", "1 where this operator does the work, else 0.")
WATCH_AGE = Gauge(
    "daybreak_operator_watch_age_seconds",
    "Time since a watch last connected; it does so every two minutes.",
    ("resource",),
)
ATTEMPTS_STARTED = Counter("daybreak_operator_attempts_started", "Attempts that were started.")
ATTEMPTS_ENDED = Counter(
    "daybreak_operator_attempts_ended",
    "Attempts that ended, by the reason: of the failure, Complete, Suspended, Evicted, Resizing, "
    "FewerNodes, SuspectNodesNeeded, WorkersChanged or JobLost.",
    ("reason",),
)
RESTARTS = Counter(
    "daybreak_operator_restarts", "Failed attempts that were charged to a run's failurePolicy."
)
FIRST_STEP_SECONDS = Histogram(
    "daybreak_operator_time_to_first_step_seconds",
    "From an attempt's creation to its first optimizer step, time in a queue included.",
    buckets=_START_BUCKETS,
)

Body = Mapping[str, Any]
_STOPS = ("Evicted", "Resizing", "FewerNodes", "SuspectNodesNeeded", "WorkersChanged")
"""Reasons why an attempt is ended that has not failed."""
_reasons: set[str] = set()


class RunCollector(Collector):
    """Gauges of the runs that exist, counted when somebody asks: those of a deleted run are gone.

    The share of images that show their prompt is here and not only on worker 0, which ends before
    anybody has scraped its last word.
    """

    def __init__(self, runs: Callable[[], Iterable[Body]]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        by_phase = GaugeMetricFamily("daybreak_operator_runs", "Runs by phase.", labels=("phase",))
        alignment = GaugeMetricFamily(
            "daybreak_operator_run_alignment_ratio",
            "Share of the finished model's images that show their prompt.",
            labels=("namespace", "run", "tag"),
        )
        phases: Tally[str] = Tally()
        for body in self._runs():
            metadata, status = body["metadata"], body.get("status") or {}
            phases[status.get("phase", "Pending")] += 1
            tags = (status.get("evaluation") or {}).get("alignmentByTag") or {}
            for tag, share in tags.items():
                alignment.add_metric((metadata["namespace"], metadata["name"], tag), float(share))
        for phase, number in phases.items():
            by_phase.add_metric((phase,), number)
        yield by_phase
        yield alignment


def count_change(before: Body, after: Body) -> None:
    """What a written status tells that the one before it did not. The process that wrote it counts
    it, so it is counted once."""
    ATTEMPTS_STARTED.inc(max(0, after.get("attempt", 0) - before.get("attempt", 0)))
    RESTARTS.inc(max(0, after.get("restarts", 0) - before.get("restarts", 0)))
    if (number := _ended(before, after)) is not None:
        ATTEMPTS_ENDED.labels(_bounded(_end_reason(number, before, after))).inc()
    attempt = after.get("currentAttempt") or {}
    first = attempt.get("firstStepTime")
    if first is not None and first != (before.get("currentAttempt") or {}).get("firstStepTime"):
        took = datetime.fromisoformat(first) - datetime.fromisoformat(attempt["createdTime"])
        FIRST_STEP_SECONDS.observe(max(0.0, took.total_seconds()))


def _ended(before: Body, after: Body) -> int | None:
    """The number of the attempt whose end is new."""
    old, new = before.get("currentAttempt") or {}, after.get("currentAttempt") or {}
    if old and old.get("endedTime") is None and old["number"] != new.get("number"):
        return int(old["number"])
    same = old.get("number") == new.get("number")
    is_new = new.get("endedTime") is not None and not (same and old.get("endedTime") is not None)
    return int(new["number"]) if is_new else None


def _end_reason(number: int, before: Body, after: Body) -> str:
    failure, phase = after.get("lastFailure") or {}, after.get("phase")
    if failure != before.get("lastFailure") and failure.get("attempt") == number:
        return str(failure["reason"])
    if phase in ("Complete", "Suspended"):
        return str(phase)
    conditions = after.get("conditions") or []
    said = next((c["reason"] for c in conditions if c["type"] == "Running"), "")
    # Else somebody has deleted its Job, and the reason is what is waited for since.
    return said if said in _STOPS else "JobLost"


def _bounded(reason: str) -> str:
    """Workers name reasons, and a hostile one could name a new one each time."""
    if len(_reasons) < _MAX_REASONS:
        _reasons.add(reason)
    return reason if reason in _reasons else "Other"
