"""What the ranks of a group do together on the host, so that a failure on one is heard by all.

Whatever asks a store runs in a thread of its own (`run`). Meanwhile the ranks tell each other, a
few times a second, who still works and what moves: so all of them give up at the same moment where
the store of one stands still, a slow one has all the time it needs, and no collective ever waits
for a store. A collective that fails has lost a rank, and the group with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.source import ResumeFromError
from daybreak_trainer.checkpoint.storage import StorageError
from daybreak_trainer.checkpoint.streams import Moved
from daybreak_trainer.checkpoint.worker import Worker
from daybreak_trainer.parallel.process_group import Rank

T = TypeVar("T")
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.001, 0.25


class FencedError(StorageError):
    """A newer attempt has begun: this worker is a leftover and must write nothing more."""


class RanksLostError(RuntimeError):
    """A collective failed: the ranks can do nothing together any more. Says how the first one
    failed."""


_TOLD_AS_THEY_ARE = (FencedError, ChangedError, ResumeFromError)


class _Round(NamedTuple):
    """Sums over the ranks."""

    busy: int
    stalled: int
    moved: int


class Together:
    def __init__(
        self, rank: Rank, group: dist.ProcessGroup | None, moved: Moved, timeout_seconds: float
    ) -> None:
        """`timeout_seconds`: how long a store may stand still (`moved` does not change). `group`
        may be None for one rank alone."""
        self.rank, self.group = rank, group
        self.worker = Worker("store")
        self._moved, self._timeout = moved, timeout_seconds
        self._all_moved = 0
        self._lost: str | None = None
        self._hang = ""
        """Why the worker was given up last, on whatever rank the cause was."""

    @property
    def moved(self) -> int:
        """Changes as long as something moves on any rank; for one who waits for them all."""
        return self._all_moved + self._moved.count

    # --- Collectives ------------------------------------------------------------------------------

    @contextmanager
    def collectives(self) -> Iterator[None]:
        """Around collectives: raises RanksLostError where one fails, and from then on."""
        if self._lost is not None:
            raise RanksLostError(self._lost)
        try:
            yield
        except RuntimeError as error:
            if self._lost is None:  # else it is what this one led to
                self._lost = f"the ranks cannot save or load together any more: {error}"
            raise RanksLostError(self._lost) from error

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.rank.world == 1:
            return [value]
        values: list[Any] = [None] * self.rank.world
        with self.collectives():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: T | None) -> T:
        """Rank 0's value, on every rank."""
        if self.rank.world == 1:
            return cast(T, value)
        values: list[Any] = [value]
        with self.collectives():
            dist.broadcast_object_list(values, src=0, group=self.group)
        told: T = values[0]
        return told

    # --- Work -------------------------------------------------------------------------------------

    def here(self, work: Callable[[], T]) -> T:
        """Runs each rank's own work, which asks no store; where one fails, all raise what the first
        of them met."""
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear of it)
            failure = error
        self._agree(failure)
        return result[0]

    def run(self, what: str, work: Callable[[], T]) -> T:
        """Runs each rank's own work on a store; where one fails or stands still, all raise what the
        first of them met. `what` follows "cannot" in the message.

        Raises:
            StorageError, ChangedError: as the work did; anything else becomes a StorageError.
            RanksLostError: a rank is gone.
        """
        self.here(self._check_worker)
        future = self.worker.submit(work)
        stands_still = self._attend(future)

        def result() -> T:
            if stands_still:
                raise StorageError(
                    f"cannot {what}: the store stands still, nothing moved for {self._timeout:g} s"
                )
            # Of a rank that is given up because of another one's store.
            return future.result() if future.done() and not future.cancelled() else None  # type: ignore[return-value]

        try:
            return self.here(result)
        except StorageError as error:
            if self.worker.hangs:
                self._hang = str(error)
            raise

    def run_on_first(self, what: str, work: Callable[[], T]) -> T:
        """Runs rank 0's work alone; every rank returns its result or raises its error."""
        result = self.run(what, lambda: work() if self.rank.is_first else None)
        return self.from_first(result)

    def settle(self) -> bool:
        """This rank alone: waits until its worker has nothing to do; False: it stands still."""
        future = self.worker.submit(lambda: None)
        still = _Standstill(self._moved, self._timeout)
        while not future.done():
            if still.is_over() or self.worker.hangs:
                self._hang = self._hang or "old checkpoints could not be removed"
                self.worker.give_up(future)
                return False
            wait([future], _LONGEST_PAUSE_SECONDS)
        return True

    def hang(self) -> StorageError | None:
        """Of this rank's store: there still is an end to wait for of what was given up."""
        if not self.worker.hangs:
            return None
        return StorageError(f"the store has not answered since: {self._hang}")

    def _check_worker(self) -> None:
        if (hang := self.hang()) is not None:
            raise hang

    def _attend(self, future: Future[Any]) -> bool:
        """Waits until the work of all ranks has ended, or that of one stands still; returns whether
        it is this rank's."""
        still = _Standstill(self._moved, self._timeout)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            wait([future], pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            busy = not future.done()
            stalled = busy and still.is_over()
            every = self._round(_Round(busy, stalled, self._moved.count))
            self._all_moved = every.moved
            if every.stalled:
                if busy:
                    self.worker.give_up(future)
                return stalled
            if not every.busy:
                return False

    def _round(self, own: _Round) -> _Round:
        if self.rank.world == 1:
            return own
        numbers = torch.tensor(own, dtype=torch.int64)
        with self.collectives():
            dist.all_reduce(numbers, group=self.group)
        return _Round(*numbers.tolist())

    def _agree(self, failure: Exception | None) -> None:
        for number, told in enumerate(self.gathered(_sendable(failure))):
            if told is not None:
                if isinstance(told, _TOLD_AS_THEY_ARE) or self.rank.world == 1:
                    raise told from failure
                raise type(told)(f"rank {number}: {told}") from failure


class _Standstill:
    """Since when a count has not changed."""

    def __init__(self, moved: Moved, seconds: float) -> None:
        self._moved, self._seconds = moved, seconds
        self._count, self._since = moved.count, time.monotonic()

    def is_over(self) -> bool:
        """Whether that is long enough."""
        if self._moved.count != self._count:
            self._count, self._since = self._moved.count, time.monotonic()
        return time.monotonic() - self._since >= self._seconds


def _sendable(error: Exception | None) -> Exception | None:
    """Errors of libraries may not survive the way to another process."""
    if error is None or isinstance(error, StorageError | ChangedError | ResumeFromError):
        return None if error is None else type(error)(str(error))
    return StorageError(str(error) or repr(error))
