"""What the ranks of a group do together on the host, so that a failure on one is heard by all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.storage import StorageError
from daybreak_trainer.parallel.process_group import Rank

T = TypeVar("T")


class FencedError(StorageError):
    """A newer attempt has begun: this worker is a leftover and must write nothing more."""


_TOLD_AS_THEY_ARE = (FencedError, ChangedError)


class Together:
    def __init__(self, rank: Rank, group: dist.ProcessGroup) -> None:
        self.rank, self._group = rank, group

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.rank.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: T | None) -> T:
        """Rank 0's value, on every rank."""
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        told: T = values[0]
        return told

    def run(self, work: Callable[[], T]) -> T:
        """Runs each rank's own work; where one fails, all raise what the first of them met.

        Raises:
            StorageError, ChangedError: as the work did; anything else becomes a StorageError.
        """
        result: list[T] = []
        failure: Exception | None = None
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001 (whatever it is, the others must hear of it)
            failure = error
        for number, told in enumerate(self.gathered(_sendable(failure))):
            if told is not None:
                if isinstance(told, _TOLD_AS_THEY_ARE) or self.rank.world == 1:
                    raise told from failure
                raise type(told)(f"rank {number}: {told}") from failure
        return result[0]

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Runs rank 0's work alone; every rank returns its result or raises its error."""
        result = self.run(lambda: work() if self.rank.is_first else None)
        return self.from_first(result)


def _sendable(error: Exception | None) -> Exception | None:
    """Errors of libraries may not survive the way to another process."""
    if error is None or isinstance(error, StorageError | ChangedError):
        return None if error is None else type(error)(str(error))
    return StorageError(str(error) or repr(error))
