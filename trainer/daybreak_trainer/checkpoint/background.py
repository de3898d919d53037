"""One thread that does jobs in turn, beside training."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Background:
    """A daemon: a store that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, job: Callable[[], None]) -> None:
        """`job` must not raise; one at a time (`wait_idle` first)."""
        self._idle.clear()
        self._jobs.put(job)

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Whether the job has ended within the time."""
        return self._idle.wait(timeout_seconds)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            self._idle.set()
