"""How data comes in. Every rank, or a node's only one that downloads, counts its own work."""

from __future__ import annotations

from daybreak_trainer.telemetry.metrics.family import counter, largest_gauge


class LoaderMetrics:
    def __init__(self) -> None:
        self._bytes = counter("loader_downloaded_bytes", "Bytes of shards that were downloaded.")
        self._hits = counter("loader_cache_hits", "Shards that were in the node's cache.")
        self._misses = counter("loader_cache_misses", "Shards that had to be downloaded.")
        self._retries = counter("loader_retries", "Requests to a store that were made again.")
        self._failures = counter(
            "loader_shard_failures", "Shards that were missing, cut short or damaged."
        )
        self._stalled = largest_gauge(
            "loader_stalled_seconds", "How long a rank has been waiting for its next batch by now."
        )

    def downloaded(self, size_bytes: int) -> None:
        self._bytes.inc(size_bytes)

    def found_in_cache(self) -> None:
        self._hits.inc()

    def not_in_cache(self) -> None:
        self._misses.inc()

    def retried(self) -> None:
        self._retries.inc()

    def shard_failed(self) -> None:
        self._failures.inc()

    def stalled(self, seconds: float) -> None:
        """So far; 0 when the batch has come."""
        self._stalled.set(seconds)
