"""How data comes in. Every rank, or a node's only one that downloads, counts its own work."""

from __future__ import annotations

import time

from daybreak_trainer.data.counters import DataCounts
from daybreak_trainer.telemetry.metrics.family import counter, process_gauge


class LoaderMetrics:
    def __init__(self) -> None:
        self._counts = DataCounts()
        self._bytes = counter("loader_downloaded_bytes", "Bytes of shards that were downloaded.")
        self._hits = counter("loader_cache_hits", "Shards that were in the node's cache.")
        self._misses = counter("loader_cache_misses", "Shards that had to be downloaded.")
        self._evicted = counter(
            "loader_cache_evicted_bytes", "Bytes of shards that made room for others."
        )
        self._retries = counter("loader_retries", "Requests to a store that were made again.")
        self._failures = counter(
            "loader_shard_failures", "Shards that were missing, cut short or damaged."
        )
        self._waiting = process_gauge(
            "loader_waiting_since_timestamp_seconds",
            "Since when a rank has been waiting for its next batch, Unix time; 0 while it is not.",
            "rank",
        )

    def counts(self, counts: DataCounts) -> None:
        """What this rank's data path has done so far; called now and then."""
        before, self._counts = self._counts, counts
        for metric, now, then in (
            (self._bytes, counts.downloaded_bytes, before.downloaded_bytes),
            (self._hits, counts.cache_hits, before.cache_hits),
            (self._misses, counts.cache_misses, before.cache_misses),
            (self._evicted, counts.evicted_bytes, before.evicted_bytes),
            (self._retries, counts.retries, before.retries),
            (self._failures, counts.shard_failures, before.shard_failures),
        ):
            metric.inc(now - then)

    def waits(self, rank: int) -> None:
        """From now on, for its next batch: before, for a rank that waits tells nothing."""
        self._waiting.labels(str(rank)).set(time.time())

    def has_batch(self, rank: int) -> None:
        self._waiting.labels(str(rank)).set(0.0)
