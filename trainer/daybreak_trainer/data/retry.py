"""How long the data path puts up with a store or a volume that fails, and what may pass at all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    stop_when_event_set,
    wait_fixed,
    wait_random_exponential,
)

from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.errors import BadDataError
from daybreak_trainer.stores.errors import FULL, StorageRefusedError, answer, is_passing, said
from daybreak_trainer.stores.patience import Patience
from daybreak_trainer.telemetry import log

Result = TypeVar("Result")

_PERMANENT = (
    BadDataError,
    StorageRefusedError,
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FileExistsError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
)
"""The store said no, or could never be asked. All else (throttling, broken connections, time-outs,
whatever class a store's library gives them) may pass."""


class StoppedError(Exception):
    """Nobody needs the result any more."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a store is given."""

    total_seconds: float = 600.0
    """Without anything new, from the first attempt; the attempt that runs then is the last."""
    stall_seconds: float = 60.0
    """For one attempt, which gets a part of a shard or nothing."""
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0

    @classmethod
    def within(cls, seconds: float) -> RetryPolicy:
        """The longest that gives up, in the store's own words, before `seconds` without anything
        new have passed: those after which somebody else would end the process."""
        usual = cls()
        return cls(
            total_seconds=min(usual.total_seconds, seconds / 2),
            stall_seconds=min(usual.stall_seconds, seconds / 4),
            longest_wait_seconds=min(usual.longest_wait_seconds, seconds / 8),
        )

    @property
    def patience(self) -> Patience:
        """For the requests of an attempt. They are over before the attempt is, so that it ends with
        what the store said; and are not repeated, for attempts are."""
        usual = Patience()
        return Patience(
            connect_seconds=min(usual.connect_seconds, self.stall_seconds / 6),
            silence_seconds=min(usual.silence_seconds, self.stall_seconds / 2),
            total_seconds=0.0,
            answer_seconds=self.stall_seconds * 0.9,
        )


def is_full(error: BaseException) -> bool:
    """Whether the volume that was written to has no room."""
    return isinstance(error, OSError) and error.errno in FULL


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, (StoppedError, *_PERMANENT)) or not isinstance(error, Exception):
        return False
    if answer(error) is not None:
        return is_passing(error)
    # botocore's NoCredentialsError and the like have no base class of their own.
    return not is_full(error) and "Credential" not in type(error).__name__


Told = Callable[[int, BaseException | None], None]
"""Hears the number of each attempt before it begins, and the error of the one before."""


def persistently(
    attempt: Callable[[], Result],
    policy: RetryPolicy,
    where: str,
    counters: DataCounters,
    told: Told,
    stopped: threading.Event,
) -> Result:
    """Calls `attempt` until it succeeds, fails for good, or time is up; then its last error
    raises. `where` is said in the log."""
    last: list[BaseException | None] = [None]

    def before(state: RetryCallState) -> None:
        if (error := last[0]) is not None:
            counters.add("retries")
            log.event(
                "storage_request_repeated",
                logging.WARNING,
                operation="read",
                where=where,
                attempt_number=state.attempt_number - 1,
                error=said(error),
            )
        told(state.attempt_number, error)

    def after(state: RetryCallState) -> None:
        last[0] = state.outcome.exception() if state.outcome is not None else None

    def sleep(seconds: float) -> None:
        stopped.wait(seconds)

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_fixed(policy.first_wait_seconds / 2)
        + wait_random_exponential(policy.first_wait_seconds, policy.longest_wait_seconds),
        stop=stop_after_delay(policy.total_seconds) | stop_when_event_set(stopped),
        sleep=sleep,
        before=before,
        after=after,
        reraise=True,
    )
    return retrying(attempt)
