"""The shards that this process reads: brought here in parallel, verified, and kept open a while."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from daybreak_trainer.data.cache import NodeCache, touch
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.delivery import Delivery, Progress
from daybreak_trainer.data.retry import StoppedError
from daybreak_trainer.data.shard import ShardFile

_OPEN_SHARDS = 256


@dataclass
class _Pending:
    """A shard on its way here."""

    progress: Progress = field(default_factory=Progress)
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
        self._shards, self._counters = corpus.shards, counters
        self.budget_bytes = (
            cache.limit_bytes // (2 * processes) if cache.limit_bytes is not None else None
        )
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._open_bytes = 0
        self._pending: dict[int, _Pending] = {}
        self._epochs: dict[int, int] = {}
        self._failed: dict[int, Exception] = {}
        self._queue: deque[int] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._delivery = Delivery(cache, counters, self._stopped)
        cache.let_go = self._close_idle
        self._threads = [
            threading.Thread(target=self._work, name=f"shards-{number}", daemon=True)
            for number in range(downloads)
        ]
        for thread in self._threads:
            thread.start()

    # --- for those who need shards --------------------------------------------------------------

    def announce(self, epochs: Mapping[int, int]) -> None:
        """Begins to bring shards here, in this order, unless they are here. With each, the epoch
        of its stream and bucket for which it is needed."""
        with self._changed:
            self._epochs.update(epochs)
            for number in epochs:
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

    def again(self, number: int, failed: ShardFile) -> ShardFile:
        """The shard, opened and verified anew, after its file here could not be read.

        Raises:
            As `get`.
        """
        with self._changed:
            if self._open.get(number, failed) is failed:  # else somebody else did it
                self._delivery.forget(self._shards[number])
                if self._open.pop(number, None) is not None:
                    self._open_bytes -= failed.info.raw.size
        return self.get(number)

    @property
    def coming(self) -> int:
        """How many are announced and not here yet."""
        return len(self._pending)

    def waiting_for(self, numbers: Iterable[int]) -> str | None:
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
            progress, epoch = self._pending[number].progress, self._epochs.get(number, 0)
            self._done(number, self._delivery.bring(self._shards[number], epoch, progress))
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
        if self._delivery.in_cache(self._shards[number]):
            touch(file.descriptor)
