"""One thread that does jobs in turn, so that who waits for one can stop waiting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A daemon: a store that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._now: Future[Any] | None = None
        self._hangs: Future[Any] | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def give_up(self, future: Future[Any]) -> None:
        """Nobody waits for this job any more: if it has not begun, it never does."""
        self._hangs = self._now if future.cancel() else future

    @property
    def hangs(self) -> bool:
        """Whether the job that somebody gave up, or the one in its way, still has not ended."""
        return self._hangs is not None and not self._hangs.done()

    def _work(self) -> None:
        while True:
            future, job = self._jobs.get()
            self._now = future
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                future.set_exception(error)
            else:
                future.set_result(result)
