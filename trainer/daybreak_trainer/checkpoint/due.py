"""When the next checkpoint is due."""

from __future__ import annotations

import time


class Due:
    """By time, which rank 0 tells the others, or by steps, which every rank counts alike."""

    def __init__(self, every_seconds: float | None, every_steps: int | None) -> None:
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._last = time.monotonic()

    def by_time(self) -> bool:
        if self._every_seconds is None:
            return False
        return time.monotonic() - self._last >= self._every_seconds

    def by_steps(self, step: int) -> bool:
        """After `step` steps of the run."""
        return self._every_steps is not None and step % self._every_steps == 0

    def began(self) -> None:
        """A save began: the time to the next one runs from here."""
        self._last = time.monotonic()
