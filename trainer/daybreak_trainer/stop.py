"""Ends a pod that is told to stop while it has no ranks which could make a checkpoint.

Only the standard library is imported here: the kernel discards a SIGTERM that PID 1 has no handler
for, so the handler comes before every import that takes time.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from multiprocessing import active_children
from threading import Thread


class StopWithoutRanks:
    """Calls `end` on a SIGTERM that comes while there are no ranks.

    A thread on the signal's wake-up descriptor, because rendezvous blocks in C++ for minutes, in
    which no Python signal handler runs.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self.end = end
        """Must not return; replaced as more is known that it can tell."""
        self._is_over = False
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(write_end.fileno())
        self._sockets = (read_end, write_end)
        Thread(target=self._wait, name="stop", daemon=True).start()

    def over(self) -> None:
        """The ranks have ended: how is decided, and a late SIGTERM changes nothing about it.

        torchrun's agent leaves a handler that raises. The first pod that fails has the others
        deleted, so a SIGTERM just now is nothing rare.
        """
        self._is_over = True
        signal.signal(signal.SIGTERM, lambda *_: None)

    def _wait(self) -> None:
        while data := self._sockets[0].recv(1):
            if data[0] == signal.SIGTERM and not self._is_over and not active_children():
                self.end()
