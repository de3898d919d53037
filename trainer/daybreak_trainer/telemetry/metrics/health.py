"""What went wrong and was dealt with, and what may go wrong next. Rank 0 sets these but for the
matrix products of the self-test, which are each rank's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from daybreak_trainer.telemetry.metrics.family import counter, process_gauge, run_gauge


class HealthMetrics:
    def __init__(self) -> None:
        self._restarts = run_gauge("restarts", "Restarts over the whole run, by cause.", "cause")
        self._non_finite = counter(
            "non_finite_steps", "Steps skipped because loss or gradient was not finite."
        )
        self._spikes = counter("loss_spikes", "Steps whose loss stood out of those before.")
        self._rollbacks = counter("rollbacks", "Times that the run went back to a commit.")
        self._stragglers = run_gauge(
            "straggler_ratio", "Time of a rank's own work over that of the fast ranks.", "rank"
        )
        self._stop = run_gauge(
            "stop_seconds", "How long a stop takes, from the request to its commit."
        )
        self._grace = run_gauge("grace_seconds", "How long a stop may take.")
        self._matmul = process_gauge(
            "self_test_matmul_flops_per_second", "Matrix products of a rank at its start.", "rank"
        )
        self._all_gather = run_gauge(
            "self_test_all_gather_bytes_per_second", "All-gather over all ranks at the start."
        )
        self._storage = run_gauge(
            "self_test_storage_bytes_per_second",
            "The checkpoints' storage at the start.",
            "direction",
        )

    def restarts(self, by_cause: Mapping[str, int]) -> None:
        for cause, number in by_cause.items():
            self._restarts.labels(cause).set(number)

    def step_skipped(self) -> None:
        self._non_finite.inc()

    def loss_spiked(self) -> None:
        self._spikes.inc()

    def rolled_back(self) -> None:
        self._rollbacks.inc()

    def stragglers(self, ratios: Mapping[int, float]) -> None:
        """By rank; 1 is as fast as the fast ranks, 2 takes twice as long."""
        for rank, ratio in ratios.items():
            self._stragglers.labels(str(rank)).set(ratio)

    def grace(self, seconds: float) -> None:
        """What the pod leaves its ranks between SIGTERM and SIGKILL."""
        self._grace.set(seconds)

    def stop(self, seconds: float) -> None:
        """As last measured, or as a save and a step let expect."""
        self._stop.set(seconds)

    def matmul(self, rank: int, flops_per_second: float) -> None:
        self._matmul.labels(str(rank)).set(flops_per_second)

    def all_gather(self, bytes_per_second: float) -> None:
        self._all_gather.set(bytes_per_second)

    def storage(self, direction: Literal["read", "write"], bytes_per_second: float) -> None:
        self._storage.labels(direction).set(bytes_per_second)
