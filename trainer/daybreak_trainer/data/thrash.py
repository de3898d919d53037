"""Sees whether the node's cache is too small: shards come a second time while they are in use."""

from __future__ import annotations

import logging
import threading
import time

from daybreak_trainer.telemetry import log

_SAY_SECONDS = 600.0


class Thrash:
    """Of one process's downloads; safe to use from several threads."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._epochs: dict[int, int] = {}
        self._again = 0
        self._said: float | None = None
        self._lock = threading.Lock()

    def downloaded(self, number: int, epoch: int, where: str) -> None:
        """A shard was downloaded, for its samples in this epoch. In the next one it may well have
        gone; twice in one, the cache does not hold what is being read. Said every ten minutes."""
        with self._lock:
            before, self._epochs[number] = self._epochs.get(number), epoch
            if before != epoch:
                return
            self._again += 1
            now = time.monotonic()
            if self._said is not None and now - self._said < _SAY_SECONDS:
                return
            self._said, again, self._again = now, self._again, 0
        log.event(
            "cache_too_small",
            logging.WARNING,
            limit_bytes=self._limit,
            downloaded_again=again,
            shard=where,
            reason="shards were evicted while their samples were in use; counted since last said",
        )
