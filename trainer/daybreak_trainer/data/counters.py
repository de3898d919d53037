"""What the data path has done so far, for the metrics of the process that owns it."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class DataCounts:
    """Counted since the process began."""

    downloaded_bytes: int = 0
    cache_hits: int = 0
    """Shards that lay in the node's cache when they were first needed here."""
    cache_misses: int = 0
    evicted_bytes: int = 0
    retries: int = 0
    shard_failures: int = 0
    """Shards given up on, and those found damaged."""


class DataCounters:
    """Counts from many threads; `read` gives one consistent picture."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """`name` is a field of `DataCounts`."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def read(self) -> DataCounts:
        with self._lock:
            return DataCounts(**self._counts)
