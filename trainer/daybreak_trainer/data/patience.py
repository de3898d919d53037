"""Training that waits for data says for what: at once to its heartbeat, later to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from daybreak_trainer.telemetry import log

_SAY_SECONDS = 1.0


class Patience:
    """Of one wait for a batch. `says` is told every second what is missing; the log after
    `log_seconds`, and again at growing intervals."""

    def __init__(
        self,
        log_seconds: float,
        waiting_for: Callable[[], str | None],
        says: Callable[[str], None],
    ) -> None:
        self._since = time.monotonic()
        self._next, self._waiting_for, self._says = log_seconds, waiting_for, says

    def seconds(self) -> float:
        """To wait before `lost` is called."""
        return min(max(self._since + self._next - time.monotonic(), 0.0), _SAY_SECONDS)

    def lost(self) -> None:
        """There is no batch yet."""
        waited, missing = time.monotonic() - self._since, self._waiting_for()
        self._says(missing or "")
        if waited >= self._next:
            log.event(
                "data_stalled", logging.WARNING, seconds=round(waited, 1), waiting_for=missing
            )
            self._next *= 2
