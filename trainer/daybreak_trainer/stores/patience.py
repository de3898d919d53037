"""How long to wait for a store, and how often to ask again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential

from daybreak_trainer.stores.errors import is_passing, said
from daybreak_trainer.telemetry import log

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 10.0


@dataclass(frozen=True)
class Patience:
    """A request that meets trouble which passes is repeated for `total_seconds`, with growing
    waits; so the last one begins at most that long after the first."""

    connect_seconds: float = 5.0
    silence_seconds: float = 20.0
    """Without a byte from the store."""
    total_seconds: float = 90.0
    slowest_bytes_per_second: float = float(1 << 20)
    """A body that is sent more slowly than this counts as stuck."""
    answer_seconds: float | None = None
    """Until a part of a file that is read has arrived; None: as long as bytes come."""

    def request_seconds(self, body_bytes: int) -> float:
        """The longest that one request may take until the store begins to answer."""
        sending = body_bytes / self.slowest_bytes_per_second
        return self.connect_seconds + self.silence_seconds + sending

    def policy(self, operation: str, where: Callable[[], str]) -> dict[str, Any]:
        """Arguments of tenacity's `Retrying` and `AsyncRetrying`."""

        def note(state: RetryCallState) -> None:
            assert state.outcome is not None  # tenacity calls this after a failure
            error = state.outcome.exception()
            assert error is not None
            log.event(
                "storage_request_repeated",
                level=logging.WARNING,
                operation=operation,
                where=where(),
                attempt_number=state.attempt_number,
                error=said(error),
            )

        return {
            "retry": retry_if_exception(is_passing),
            "stop": stop_after_delay(self.total_seconds),
            "wait": wait_random_exponential(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS),
            "before_sleep": note,
            "reraise": True,
        }


PROBE = Patience(connect_seconds=3.0, silence_seconds=7.0, total_seconds=8.0)
"""For the question at the start whether a store works at all."""
AT_A_TERMINAL = Patience(connect_seconds=3.0, silence_seconds=6.0, total_seconds=3.0)
"""For a person who waits and can ask again: a wrong endpoint is said within about ten seconds."""
