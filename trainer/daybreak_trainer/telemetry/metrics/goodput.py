"""What the run's time was spent on (`telemetry.ledger`). Rank 0 sets these, for the whole run."""

from __future__ import annotations

from collections.abc import Mapping

from daybreak_trainer.telemetry.ledger import PRODUCTIVE, goodput, lost
from daybreak_trainer.telemetry.metrics.family import run_gauge


class GoodputMetrics:
    def __init__(self) -> None:
        self._productive = run_gauge(
            "productive_seconds", "Time in steps whose result the run still has."
        )
        self._lost = run_gauge("lost_seconds", "Time that was lost, by cause.", "cause")
        self._goodput = run_gauge("goodput_ratio", "Productive over all time, of the whole run.")

    def ledger(self, seconds: Mapping[str, float]) -> None:
        """`Ledger.seconds()`."""
        self._productive.set(seconds.get(PRODUCTIVE, 0.0))
        for cause, value in lost(seconds).items():
            self._lost.labels(cause).set(value)
        self._goodput.set(goodput(seconds))
