"""The folder of one dataset in any fsspec store: reads that fail are tried again, within limits.

A store may answer with an error, answer slowly, or never answer. Files are read in parts, so that
one that breaks off goes on from there, and a slow one can be told from a dead one. Each attempt
runs in a thread of its own, which is left behind when it takes too long: no library call can hold
up training for ever, and none needs to be interruptible.
"""

from __future__ import annotations

import io
import posixpath
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.pace import Pace
from daybreak_trainer.data.retry import (
    Result,
    RetryPolicy,
    StoppedError,
    Told,
    is_transient,
    persistently,
)
from daybreak_trainer.stores.errors import answer
from daybreak_trainer.stores.filesystem import open_filesystem

_POLL_SECONDS = 0.05


class Store:
    """One dataset's folder; safe to use from several threads."""

    def __init__(
        self, url: str, options: Mapping[str, Any], policy: RetryPolicy, counters: DataCounters
    ) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = open_filesystem(self.url, options, policy.patience)
        self._policy, self._counters = policy, counters
        self._pace = Pace()

    @property
    def local_root(self) -> Path | None:
        """Where the files lie, if that is on this machine or mounted there."""
        return Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def read(self, name: str) -> bytes:
        """A small file of the folder.

        Raises:
            Exception: the store's answer; its last one, where it failed until time was up.
        """
        file = io.BytesIO()
        self.get(name, None, file, lambda attempt, error: None, threading.Event())
        return file.getvalue()

    def get(
        self, name: str, size: int | None, file: BinaryIO, told: Told, stopped: threading.Event
    ) -> None:
        """Appends a file of the folder to `file`, which is empty. Its `size`, where that is known,
        is when to stop asking; a file that is larger or smaller gives more or less than that.

        Raises:
            Exception: as `read`; also what writing to `file` raised.
            StoppedError: `stopped` was set.
        """
        path = posixpath.join(self._root, name)
        start = 0
        while size is None or start < size:
            data, whole = self.persistently(
                name, partial(self._part, path, start, stopped), told, stopped
            )
            file.write(data)
            start += len(data)
            if not whole:
                return
            if size is None:  # asked for of large files only: a request, and not needed otherwise
                size = self.persistently(name, lambda: self._size(path, stopped), told, stopped)

    def persistently(
        self, name: str, attempt: Callable[[], Result], told: Told, stopped: threading.Event
    ) -> Result:
        """Calls `attempt`, which reads the file of this name, until it succeeds, fails for good, or
        this store's time is up; then its last error raises."""
        where = f"{self.url}/{name}"
        return persistently(attempt, self._policy, where, self._counters, told, stopped)

    def _part(self, path: str, start: int, stopped: threading.Event) -> tuple[bytes, bool]:
        """What follows `start`, and whether that is as much as was asked for: else the file ends
        there. A store that does not know parts sends all of it, which is not as much either."""
        asked, since = self._pace.size, time.monotonic()

        def read() -> bytes:
            return bytes(self._fs.cat_file(path, start=start, end=start + asked))

        try:
            data = self._watched(read, f"{asked} bytes", stopped)
        except Exception as error:
            if _is_past_the_end(error):
                return b"", False
            if is_transient(error) and answer(error) is None:
                self._pace.failed(asked)
            raise
        self._pace.took(len(data), time.monotonic() - since)
        return data, len(data) == asked

    def _size(self, path: str, stopped: threading.Event) -> int:
        return self._watched(lambda: int(self._fs.info(path)["size"]), "its size", stopped)

    def _watched(self, work: Callable[[], Result], wanted: str, stopped: threading.Event) -> Result:
        """`work` in a thread that is left behind when it takes too long."""
        outcome: list[Result] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                outcome.append(work())
            except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
                failure.append(error)
            done.set()

        threading.Thread(target=run, name="store", daemon=True).start()
        deadline = time.monotonic() + self._policy.stall_seconds
        while not done.wait(_POLL_SECONDS):
            if stopped.is_set():
                raise StoppedError
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wanted} did not arrive in {self._policy.stall_seconds:g} s")
        if failure:
            raise failure[0]
        return outcome[0]


def _is_past_the_end(error: Exception) -> bool:
    """Whether the file ends before what was asked for; said by S3, or by HTTP's status."""
    _, status = answer(error) or ("", getattr(error, "status", 0))
    return status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
