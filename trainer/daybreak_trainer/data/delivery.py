"""How one shard gets here: from the node's cache, from its store, or from a mounted volume; and
never unverified."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from daybreak_trainer.data.cache import NodeCache, Partial
from daybreak_trainer.data.corpus import Shard
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.errors import DataUnavailableError, ShardError, ShardMissingError
from daybreak_trainer.data.retry import StoppedError, Told, is_full, is_transient
from daybreak_trainer.data.shard import ShardFile, missing, verify
from daybreak_trainer.data.thrash import Thrash
from daybreak_trainer.stores.errors import is_missing, said

_DOWNLOADS = 2
"""Of a shard that arrives damaged, before the store's copy is held to be so."""
Identity = tuple[int, int, int]


@dataclass
class Progress:
    """What is being done about a shard. Closures of a download refer to it, and live on until the
    garbage collector comes by: it must hold no open file."""

    state: str = "queued"
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.state}, {time.monotonic() - self.since:.0f} s"


class Delivery:
    """Opens shards of one corpus; safe to use from several threads.

    A file that this process has verified is not verified again when it is opened once more.
    """

    def __init__(self, cache: NodeCache, counters: DataCounters, stopped: threading.Event) -> None:
        self._cache, self._counters, self._stopped = cache, counters, stopped
        self._verified: dict[int, Identity] = {}
        self._thrash = Thrash(cache.limit_bytes)

    @staticmethod
    def in_cache(shard: Shard) -> bool:
        """Whether its file is one of the node's cache, and not of a mounted volume."""
        return shard.store.local_root is None or shard.info.zipped is not None

    def forget(self, shard: Shard) -> None:
        """Its file is verified again, for reading it gave an error."""
        self._verified.pop(shard.number, None)

    def bring(self, shard: Shard, epoch: int, progress: Progress) -> ShardFile:
        """The shard, open and verified; `progress` says meanwhile what is being done. `epoch` is
        that for which it is needed.

        Raises:
            ShardError: it is missing or damaged.
            DataUnavailableError: its store or the cache's volume failed for too long.
            StoppedError: `stopped` was set.
        """
        if not self.in_cache(shard):
            return self._load_local(shard, progress)
        try:
            return self._through_cache(shard, epoch, progress)
        except OSError as error:  # of the cache's volume: what stores do has a name by now
            raise _unavailable(shard, error) from error

    def _through_cache(self, shard: Shard, epoch: int, progress: Progress) -> ShardFile:
        path = self._cache.path(shard.dataset, shard.info.raw.name)
        known = shard.number in self._verified
        if (file := self._cached(shard, path)) is None:
            progress.state = "waiting for another process of this node that works on it"
            with self._cache.alone(path, self._stopped):
                progress.state = "opening"
                if (file := self._cached(shard, path)) is None:
                    return self._missed(shard, path, epoch, progress)
        if not known:
            self._counters.add("cache_hits")
        return file

    def _load_local(self, shard: Shard, progress: Progress) -> ShardFile:
        assert shard.store.local_root is not None  # in_cache
        path = shard.store.local_root / shard.info.raw.name

        def attempt() -> ShardFile:
            return self._checked(shard, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

        try:
            return shard.store.persistently(
                path.name, attempt, _told(progress, "verifying"), self._stopped
            )
        except FileNotFoundError:
            raise missing(shard.where) from None
        except OSError as error:
            raise _unavailable(shard, error) from error

    def _missed(self, shard: Shard, path: Path, epoch: int, progress: Progress) -> ShardFile:
        """Only for who is alone with this shard."""
        self._counters.add("cache_misses")
        damaged = path.exists()  # which says nothing about the original
        path.unlink(missing_ok=True)
        file = self._fetched(shard, path, progress)
        if not damaged:
            self._thrash.downloaded(shard.number, epoch, shard.where)
        return file

    def _cached(self, shard: Shard, path: Path) -> ShardFile | None:
        """None where it is not in the cache, or its copy is damaged or cannot be read."""
        try:
            descriptor = self._cache.open(path)
            return self._checked(shard, descriptor) if descriptor is not None else None
        except (ShardError, DataUnavailableError, OSError):
            return None

    def _checked(self, shard: Shard, descriptor: int) -> ShardFile:
        """Verifies a file that this process has not seen; takes over its descriptor."""
        try:
            if self._verified.get(shard.number) != (identity := _identity(descriptor)):
                verify(descriptor, shard.info.raw, shard.where)
                self._verified[shard.number] = identity
        except BaseException:
            os.close(descriptor)
            raise
        return ShardFile(descriptor, shard.info, shard.where)

    def _fetched(self, shard: Shard, path: Path, progress: Progress) -> ShardFile:
        """Downloads a shard into the cache; again, where it arrives damaged or the volume is full
        and something in it can be given up."""
        damaged = 0
        while True:
            partial: Partial | None = None
            try:
                partial = self._download(shard, path, progress)
                progress.state = "verifying"
                verify(partial.path, shard.info.raw, shard.where)
                file = ShardFile(partial.share(), shard.info, shard.where)
                self._verified[shard.number] = _identity(file.descriptor)
                self._cache.publish(partial, path, self._stopped)
                return file
            except (StoppedError, DataUnavailableError, ShardMissingError):
                raise
            except ShardError:
                damaged += 1
                if damaged == _DOWNLOADS:
                    raise
            except Exception as error:
                size = shard.info.raw.size
                if is_full(error) and self._cache.make_room(size, self._stopped):
                    continue
                raise _unavailable(shard, error) from error
            finally:
                if partial is not None:
                    partial.discard()

    def _download(self, shard: Shard, path: Path, progress: Progress) -> Partial:
        """The shard's file as it must be once it is whole, not yet compared with the index."""
        stored = shard.info.stored
        partial = self._cache.partial(path, stored.size, self._stopped)
        try:
            with partial.path.open("wb", buffering=0) as file:
                told = _told(progress, "downloading", file.tell, stored.size)
                shard.store.get(stored.name, stored.size, file, told, self._stopped)
                self._counters.add("downloaded_bytes", file.tell())
        except BaseException as error:
            partial.discard()
            if is_missing(error):
                raise missing(shard.where) from None
            raise
        if shard.info.zipped is None:
            return partial
        progress.state = "decompressing"
        try:
            return self._decompressed(shard, path, partial)
        finally:
            partial.discard()

    def _decompressed(self, shard: Shard, path: Path, zipped: Partial) -> Partial:
        from streaming.base.compression import decompress

        assert shard.info.zipped is not None  # the caller's question
        verify(zipped.path, shard.info.zipped, shard.where)
        raw = self._cache.partial(path, shard.info.raw.size, self._stopped, patient=False)
        try:
            raw.path.write_bytes(decompress(shard.info.compression, zipped.path.read_bytes()))
        except BaseException as error:
            raw.discard()
            if isinstance(error, Exception) and not isinstance(error, OSError):
                raise ShardError(
                    f"shard {shard.where} cannot be decompressed: {error}; prepare the dataset "
                    "again"
                ) from error
            raise
        return raw


def _told(
    progress: Progress, doing: str, position: Callable[[], int] | None = None, size: int = 0
) -> Told:
    """Says in `progress` what is being done, how far it is, and why it is done again."""

    def told(attempt: int, error: BaseException | None) -> None:
        far = f", {position() >> 20} of {size >> 20} MiB" if position is not None else ""
        after = f" after: {said(error)}" if error is not None else ""
        progress.state = f"{doing}, attempt {attempt}{far}{after}"

    return told


def _identity(descriptor: int) -> Identity:
    stat = os.fstat(descriptor)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unavailable(shard: Shard, error: Exception) -> Exception:
    words = said(error)
    if is_full(error):
        return DataUnavailableError(
            f"shard {shard.where}: the cache's volume is full and nothing in it can be given up "
            f"({words}); give it more space, or set a cache limit"
        )
    if isinstance(error, PermissionError):
        return ShardError(f"shard {shard.where} may not be read: {words}; check its credentials")
    advice = "the store did not recover in time" if is_transient(error) else "the store refuses it"
    return DataUnavailableError(f"shard {shard.where}: {words}; {advice}")
