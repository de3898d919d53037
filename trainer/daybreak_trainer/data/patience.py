"""The watchdog of the data path: training that waits says for what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from daybreak_trainer.telemetry import log


class Patience:
    """Says what is missing after a while without a batch, and again at growing intervals."""

    def __init__(self, first_seconds: float, waiting_for: Callable[[], str | None]) -> None:
        self._since = time.monotonic()
        self._next, self._waiting_for = first_seconds, waiting_for

    def seconds(self) -> float:
        return max(self._since + self._next - time.monotonic(), 0.0)

    def lost(self) -> None:
        log.event(
            "data_stalled",
            logging.WARNING,
            seconds=round(time.monotonic() - self._since, 1),
            waiting_for=self._waiting_for(),
        )
        self._next *= 2
