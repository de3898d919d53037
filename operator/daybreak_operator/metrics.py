"""What the operator measures of itself."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter(
    "daybreak_operator_reconciles", "Reconciliations, by how they ended.", ("result",)
)
RECONCILE_SECONDS = Histogram(
    "daybreak_operator_reconcile_seconds", "Duration of a reconciliation."
)
QUEUE_LENGTH = Gauge("daybreak_operator_queue_length", "Runs waiting to be looked at.")
RUNS = Gauge("daybreak_operator_runs", "Runs by phase.", ("phase",))
ALIGNMENT = Gauge(
    "daybreak_operator_run_alignment_ratio",
    "Share of the finished model's images that show their prompt.",
    ("namespace", "run", "tag"),
)
"""Here and not only on worker 0, which ends before anybody has scraped its last word."""
