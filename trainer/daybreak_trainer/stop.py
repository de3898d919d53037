"""Hears a SIGTERM at any moment of a pod's life, and ends the pod where no ranks could commit.

Only the standard library is imported here: the kernel discards a SIGTERM that PID 1 has no handler
for, so the handler comes before every import that takes time.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from threading import Thread


class Stop:
    """Notes when a SIGTERM came; calls `end` where there are no ranks at that moment.

    A thread on the signal's wake-up descriptor, because imports and C++ can keep the main thread
    for minutes, in which no Python signal handler runs.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end
        """Must not return; replaced as more is known that it can tell."""
        self.requested_at: float | None = None
        """On the monotonic clock; the launcher tells its ranks."""
        self.has_ranks = False
        """Set by the launcher: ranks run, and are told to stop by it."""
        self._is_over = False
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(write_end.fileno())
        self._sockets = (read_end, write_end)
        Thread(target=self._wait, name="stop", daemon=True).start()

    def over(self) -> None:
        """How the pod ends is decided, and a late SIGTERM changes nothing about it: the first pod
        that fails has the others deleted, so one just now is nothing rare."""
        self._is_over = True

    def _wait(self) -> None:
        while data := self._sockets[0].recv(1):
            if data[0] != signal.SIGTERM or self._is_over:
                continue
            if self.requested_at is None:
                self.requested_at = time.monotonic()
            if not self.has_ranks:
                self.end()
