"""The shards that this process reads: brought here in parallel, verified, and kept open a while."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daybreak_trainer.data.cache import NodeCache, Partial, touch
from daybreak_trainer.data.corpus import Corpus, Shard
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.errors import DataUnavailableError, ShardError
from daybreak_trainer.data.shard import ShardFile, missing, verify
from daybreak_trainer.data.store import StoppedError, is_full, is_transient

_DOWNLOADS = 2
"""Of a shard that arrives damaged, before the store's copy is held to be so."""
_OPEN_SHARDS = 256
Identity = tuple[int, int, int]


@dataclass
class _Progress:
    """What is being done about a shard. Closures of a download refer to it, and live on until the
    garbage collector comes by: it must hold no open file."""

    state: str = "queued"
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.state}, {time.monotonic() - self.since:.0f} s"


@dataclass
class _Pending:
    """A shard on its way here."""

    progress: _Progress = field(default_factory=_Progress)
    file: ShardFile | None = None
    """Set when it is here, for those who wait for it: it may be closed again before they look."""


class Shards:
    """Open, verified shards of a corpus; safe to use from several threads.

    Shards that were announced are brought here in order by a few threads, so that they are there
    when they are needed. The least recently used are closed again.
    """

    def __init__(
        self,
        corpus: Corpus,
        cache: NodeCache,
        counters: DataCounters,
        *,
        downloads: int = 8,
        processes: int = 1,
    ) -> None:
        """`downloads` at once; `processes` on this node share the cache, and none keeps more of it
        from being evicted than its part of one half."""
        self._shards, self._cache, self._counters = corpus.shards, cache, counters
        self.budget_bytes = (
            cache.limit_bytes // (2 * processes) if cache.limit_bytes is not None else None
        )
        self._verified: dict[int, Identity] = {}
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._open_bytes = 0
        self._pending: dict[int, _Pending] = {}
        self._failed: dict[int, Exception] = {}
        self._queue: deque[int] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        cache.let_go = self._close_idle
        self._threads = [
            threading.Thread(target=self._work, name=f"shards-{number}", daemon=True)
            for number in range(downloads)
        ]
        for thread in self._threads:
            thread.start()

    # --- for those who need shards --------------------------------------------------------------

    def announce(self, numbers: Iterable[int]) -> None:
        """Begins to bring shards here, in this order, unless they are here."""
        with self._changed:
            for number in numbers:
                self._enqueue(number)

    def get(self, number: int) -> ShardFile:
        """An open shard, once it is here.

        Raises:
            ShardError: it is missing or damaged.
            DataUnavailableError: its store or the cache's volume failed for too long.
            StoppedError: `close` was called.
        """
        with self._changed:
            while True:
                if (shard := self._open.get(number)) is not None:
                    self._open.move_to_end(number)
                    return shard
                if self._stopped.is_set():
                    raise StoppedError
                if (error := self._failed.get(number)) is not None:
                    raise error
                self._enqueue(number)
                pending = self._pending[number]
                if pending.progress.state == "queued" and self._queue[0] != number:
                    self._queue.remove(number)
                    self._queue.appendleft(number)
                self._changed.wait()
                if pending.file is not None:
                    return pending.file

    @property
    def coming(self) -> int:
        """How many are announced and not here yet."""
        return len(self._pending)

    def waiting_for(self, numbers: Sequence[int]) -> str | None:
        """The first of these shards that is not here, and what it waits for."""
        with self._changed:
            for number in numbers:
                if (pending := self._pending.get(number)) is not None:
                    return f"shard {self._shards[number].where}: {pending.progress}"
        return None

    def close(self) -> None:
        """Ends all threads soon, in the middle of downloads too; open shards are let go of."""
        self._stopped.set()
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)
        with self._changed:
            self._open.clear()

    # --- the threads that bring them ------------------------------------------------------------

    def _enqueue(self, number: int) -> None:
        if number in self._open or number in self._pending or number in self._failed:
            return
        self._pending[number] = _Pending()
        self._queue.append(number)
        self._changed.notify_all()

    def _work(self) -> None:
        while (number := self._next()) is not None:
            self._bring(number)

    def _next(self) -> int | None:
        with self._changed:
            while not self._queue and not self._stopped.is_set():
                self._changed.wait()
            if self._stopped.is_set():
                return None
            number = self._queue.popleft()
            self._pending[number].progress.state = "opening"
            return number

    def _bring(self, number: int) -> None:
        """In a function of its own: no name of a waiting thread may hold a shard open."""
        try:
            self._done(number, self._load(self._shards[number], self._pending[number].progress))
        except Exception as error:  # noqa: BLE001 (raised where the shard is needed)
            self._gave_up(number, error)

    def _done(self, number: int, file: ShardFile) -> None:
        with self._changed:
            self._pending.pop(number).file = file
            self._open[number] = file
            self._open_bytes += file.info.raw.size
            self._close_old()
            self._changed.notify_all()

    def _gave_up(self, number: int, error: Exception) -> None:
        with self._changed:
            del self._pending[number]
            self._failed[number] = error
            self._changed.notify_all()
        if not isinstance(error, StoppedError):
            self._counters.add("shard_failures")

    def _close_old(self) -> None:
        budget = self.budget_bytes
        while len(self._open) > _OPEN_SHARDS or (
            budget is not None and self._open_bytes > budget and len(self._open) > 1
        ):
            self._close_oldest()

    def _close_idle(self) -> None:
        """Everything that no thread is reading at this moment; what is needed is opened again."""
        with self._changed:
            while self._open:
                self._close_oldest()

    def _close_oldest(self) -> None:
        number, file = self._open.popitem(last=False)
        self._open_bytes -= file.info.raw.size
        if self._in_cache(self._shards[number]):
            touch(file.descriptor)

    @staticmethod
    def _in_cache(shard: Shard) -> bool:
        return shard.store.local_root is None or shard.info.zipped is not None

    def _load(self, shard: Shard, progress: _Progress) -> ShardFile:
        if not self._in_cache(shard):
            return self._load_local(shard, progress)
        path = self._cache.path(shard.dataset, shard.info.raw.name)
        progress.state = "waiting for another process of this node that works on it"
        with self._cache.alone(path, self._stopped):
            progress.state = "opening"
            known = shard.number in self._verified
            file = self._cached(shard, path)
            if file is None:
                self._counters.add("cache_misses")
                return self._fetched(shard, path, progress)
            if not known:
                self._counters.add("cache_hits")
            return file

    def _load_local(self, shard: Shard, progress: _Progress) -> ShardFile:
        assert shard.store.local_root is not None  # _in_cache
        path = shard.store.local_root / shard.info.raw.name
        progress.state = "verifying"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise missing(shard.where) from None
        except OSError as error:
            raise _unavailable(shard, error) from error
        try:
            return self._checked(shard, descriptor)
        except OSError as error:
            raise _unavailable(shard, error) from error

    def _cached(self, shard: Shard, path: Path) -> ShardFile | None:
        """None where it is not in the cache, or its copy is damaged: that says nothing about the
        original, and is removed."""
        descriptor = self._cache.open(path)
        if descriptor is None:
            return None
        try:
            return self._checked(shard, descriptor)
        except (ShardError, OSError):
            path.unlink(missing_ok=True)
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

    def _fetched(self, shard: Shard, path: Path, progress: _Progress) -> ShardFile:
        """Downloads a shard into the cache; again, where it arrives damaged or the volume is full
        and something in it can be given up."""
        damaged = 0
        while True:
            partial: Partial | None = None
            try:
                partial = self._download(shard, path, progress)
                progress.state = "verifying"
                verify(partial.path, shard.info.raw, shard.where)
                self._verified[shard.number] = _identity(partial.path)
                partial.publish(path)
            except ShardError:
                damaged += 1
                if damaged == _DOWNLOADS:
                    raise
            except FileNotFoundError:
                raise missing(shard.where) from None
            except StoppedError:
                raise
            except Exception as error:
                size = shard.info.raw.size
                if is_full(error) and self._cache.make_room(size, self._stopped):
                    continue
                raise _unavailable(shard, error) from error
            else:
                if (file := self._cached(shard, path)) is not None:
                    return file
            finally:
                if partial is not None:
                    partial.discard()

    def _download(self, shard: Shard, path: Path, progress: _Progress) -> Partial:
        """The shard's file as it must be once it is whole, not yet compared with the index."""
        stored = shard.info.stored

        def told(attempt: int, error: BaseException | None) -> None:
            after = f" after: {error or type(error).__name__}" if error is not None else ""
            progress.state = f"downloading, attempt {attempt}{after}"

        partial = shard.store.get(
            stored.name,
            lambda: self._cache.partial(path, stored.size, self._stopped),
            told,
            self._stopped,
        )
        self._counters.add("downloaded_bytes", partial.path.stat().st_size)
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


def _identity(file: int | Path) -> Identity:
    stat = file.stat() if isinstance(file, Path) else os.fstat(file)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _unavailable(shard: Shard, error: Exception) -> Exception:
    said = str(error) or type(error).__name__
    if is_full(error):
        return DataUnavailableError(
            f"shard {shard.where}: the cache's volume is full and nothing in it can be given up "
            f"({said}); give it more space, or set a cache limit"
        )
    if isinstance(error, PermissionError):
        return ShardError(f"shard {shard.where} may not be read: {said}; check its credentials")
    advice = "the store did not recover in time" if is_transient(error) else "the store refuses it"
    return DataUnavailableError(f"shard {shard.where}: {said}; {advice}")
