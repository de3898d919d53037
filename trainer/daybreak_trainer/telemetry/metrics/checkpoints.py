"""What checkpoints cost, and what an interruption now would. Rank 0 sets these."""

from __future__ import annotations

from daybreak_trainer.telemetry.metrics.family import LONG, counter, histogram, run_gauge


class CheckpointMetrics:
    def __init__(self) -> None:
        self._step = run_gauge("checkpoint_step", "Step of the last commit.")
        self._time = run_gauge(
            "checkpoint_timestamp_seconds", "When the last commit was made, Unix time."
        )
        self._training = run_gauge(
            "checkpoint_training_seconds",
            "Of the run's training seconds, those that the last commit holds; 0 before the first.",
        )
        self._bytes = run_gauge("checkpoint_bytes", "Size of the last commit.")
        self._seconds = histogram("checkpoint_seconds", "Duration of a commit.", LONG)
        self._blocked = histogram(
            "checkpoint_blocked_seconds", "Of it, how long training was held up.", LONG
        )
        self._write = histogram(
            "checkpoint_write_seconds", "Of it, how long files were written and checked.", LONG
        )
        self._failures = counter("checkpoint_failures", "Saves that did not become a commit.")

    def resumed(self, *, step: int, unix_time: float) -> None:
        """Training goes on from this commit."""
        self._step.set(step)
        self._time.set(unix_time)

    def holds(self, training_seconds: float) -> None:
        """So much of the run's training is safe: what the last commit holds."""
        self._training.set(training_seconds)

    def committed(
        self,
        *,
        step: int,
        unix_time: float,
        seconds: float,
        blocked_seconds: float,
        write_seconds: float | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """`seconds` from the save's beginning until its commit was real."""
        self.resumed(step=step, unix_time=unix_time)
        self._seconds.observe(seconds)
        self._blocked.observe(blocked_seconds)
        if write_seconds is not None:
            self._write.observe(write_seconds)
        if size_bytes is not None:
            self._bytes.set(size_bytes)

    def failed(self) -> None:
        """A save came to nothing; the commit before it stands."""
        self._failures.inc()
