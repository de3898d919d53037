"""The folder of one dataset in any fsspec store: reads that fail are tried again, within limits.

A store may answer with an error, answer slowly, or never answer. Each attempt runs in a thread of
its own, which is left behind when nothing arrives for a while: no library call can hold up training
for ever, and none needs to be interruptible.
"""

from __future__ import annotations

import errno
import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.implementations.local import LocalFileSystem
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
from daybreak_trainer.stores.errors import StorageRefusedError
from daybreak_trainer.stores.filesystem import open_filesystem

Result = TypeVar("Result")

_PERMANENT = (
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
_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_SECONDS = 0.05


class StoppedError(Exception):
    """Nobody needs the result any more."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a store is given."""

    total_seconds: float = 600.0
    """From the first attempt; the attempt that runs then is the last."""
    stall_seconds: float = 60.0
    """Without a new byte, after which an attempt is left behind."""
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0


def is_full(error: BaseException) -> bool:
    """Whether the volume that was written to has no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, (StoppedError, StorageRefusedError, *_PERMANENT)) or not isinstance(
        error, Exception
    ):
        return False
    # botocore's NoCredentialsError and the like have no base class of their own.
    return not is_full(error) and "Credential" not in type(error).__name__


class Target(Protocol):
    """Where an attempt's bytes go: each has its own, for one left behind may still write."""

    path: Path

    def discard(self) -> None: ...


T = TypeVar("T", bound=Target)
Told = Callable[[int, BaseException | None], None]
"""Hears the number of each attempt before it begins, and the error of the one before."""


class Store:
    """One dataset's folder; safe to use from several threads."""

    def __init__(
        self, url: str, options: Mapping[str, Any], policy: RetryPolicy, counters: DataCounters
    ) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = open_filesystem(self.url, options)
        self._policy, self._counters = policy, counters

    @property
    def local_root(self) -> Path | None:
        """Where the files lie, if that is on this machine or mounted there."""
        return Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def read(self, name: str) -> bytes:
        """A small file of the folder.

        Raises:
            Exception: the store's answer; its last one, where it failed until time was up.
        """
        path = posixpath.join(self._root, name)
        stopped = threading.Event()

        def attempt() -> bytes:
            return self._watched(
                lambda: bytes(self._fs.cat_file(path)), lambda: 0, lambda: None, stopped
            )

        return self._persistently(attempt, lambda attempt, error: None, stopped)

    def get(
        self, name: str, new_target: Callable[[], T], told: Told, stopped: threading.Event
    ) -> T:
        """Copies a file of the folder to a new target, which holds all of it on return.

        Raises:
            Exception: as `read`; also what making or writing a target raised.
            StoppedError: `stopped` was set.
        """
        path = posixpath.join(self._root, name)

        def attempt() -> T:
            target = new_target()
            try:
                self._watched(
                    lambda: self._fs.get_file(path, str(target.path)),
                    lambda: _size(target.path),
                    target.discard,
                    stopped,
                )
            except BaseException:
                target.discard()
                raise
            return target

        return self._persistently(attempt, told, stopped)

    def _persistently(
        self, attempt: Callable[[], Result], told: Told, stopped: threading.Event
    ) -> Result:
        policy = self._policy
        last: list[BaseException | None] = [None]

        def before(state: RetryCallState) -> None:
            if state.attempt_number > 1:
                self._counters.add("retries")
            told(state.attempt_number, last[0])

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

    def _watched(
        self,
        work: Callable[[], Result],
        progress: Callable[[], int],
        abandoned: Callable[[], None],
        stopped: threading.Event,
    ) -> Result:
        """`work` in a thread that is left behind once `progress` stands still for too long; it
        calls `abandoned` when it comes to an end after all."""
        outcome: list[Result] = []
        failure: list[BaseException] = []
        done, left = threading.Event(), threading.Event()

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
                failure.append(error)
            done.set()
            if left.is_set():
                abandoned()

        threading.Thread(target=run, name="store", daemon=True).start()
        seen, since = progress(), time.monotonic()
        while not done.wait(_POLL_SECONDS):
            if stopped.is_set():
                left.set()
                raise StoppedError
            if (now_seen := progress()) != seen:
                seen, since = now_seen, time.monotonic()
            elif time.monotonic() - since > self._policy.stall_seconds:
                left.set()
                raise TimeoutError(f"nothing arrived for {self._policy.stall_seconds:g} s")
        if failure:
            raise failure[0]
        return outcome[0]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
