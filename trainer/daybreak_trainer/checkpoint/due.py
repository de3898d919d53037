"""When the next checkpoint is due."""

from __future__ import annotations

import time


class Due:
    """Says on rank 0 when the next checkpoint is due, by time or by steps."""

    def __init__(self, every_seconds: float | None, every_steps: int | None) -> None:
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        by_time = (
            self._every_seconds is not None and time.monotonic() - self._last >= self._every_seconds
        )
        return by_time or (self._every_steps is not None and step % self._every_steps == 0)

    def committed(self) -> None:
        self._last = time.monotonic()
