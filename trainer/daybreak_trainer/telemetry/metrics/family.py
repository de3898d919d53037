"""How a metric of the trainer is made: its prefix, and what becomes of it when its process dies."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_PREFIX: Final = "daybreak_train_"
LONG: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Buckets in seconds, for steps and commits."""
SHORT: Final = (0.001, 0.01, 0.1, 0.5, 2.0, 10.0)
"""Few buckets, for what has a label."""


def run_gauge(name: str, text: str, *labels: str) -> Gauge:
    """What holds for the whole run or pod: of all processes the one that set it last counts, and
    its death changes nothing. Absent until it is set."""
    return Gauge(_PREFIX + name, text, labels, multiprocess_mode="mostrecent")


def process_gauge(name: str, text: str, *labels: str) -> Gauge:
    """What holds for a living process, told apart by its labels; gone when the launcher marks the
    process dead (`RankProcesses`). Absent until it is set."""
    return Gauge(_PREFIX + name, text, labels, multiprocess_mode="livemostrecent")


def counter(name: str, text: str, *labels: str) -> Counter:
    """The sum over the pod's processes, dead ones too."""
    return Counter(_PREFIX + name, text, labels)


def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    """The sum over the pod's processes, dead ones too."""
    return Histogram(_PREFIX + name, text, labels, buckets=buckets)
