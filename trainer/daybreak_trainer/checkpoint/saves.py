"""Saves that run beside training: at most one in flight, and a failed one is no end.

The training thread calls `start`, `before_update` and `poll`; everything slow happens in threads
beside it. What became of a save is an `Outcome`, never an exception.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.api import CheckpointException

from daybreak_trainer.checkpoint.layout import Commit, TrainState
from daybreak_trainer.checkpoint.publish import Publisher
from daybreak_trainer.checkpoint.staging import Stager, Staging, Tensors, local
from daybreak_trainer.checkpoint.storage import StorageError
from daybreak_trainer.checkpoint.together import FencedError, RanksLostError, Together
from daybreak_trainer.checkpoint.worker import Worker
from daybreak_trainer.telemetry import log

T = TypeVar("T")
FAILURES_IN_A_ROW = 3
"""After so many a run that goes on only adds to what the next failure loses."""


@dataclass(frozen=True)
class Outcome:
    """What became of one save, on this rank."""

    step: int
    commit: Commit | None
    """None where it failed: then `failure` says why, and the commit before it stands."""
    failure: Exception | None = None
    """A StorageError, or a RanksLostError where a rank is gone."""
    failures_in_a_row: int = 0
    give_up: bool = False
    """The loop is to raise `failure`: the store fails again and again, a newer attempt has begun,
    or the ranks cannot save together any more."""
    blocked_seconds: float = 0.0
    """That training stood still for it."""
    staging_seconds: float = 0.0
    """From `start` until the copies were complete."""
    write_seconds: float = 0.0
    """From then until the commit was real."""
    bytes: int = 0
    """That this rank staged and wrote."""

    @property
    def error(self) -> str:
        """The failure in words; empty where there is none."""
        return "" if self.failure is None else str(self.failure) or repr(self.failure)


@dataclass
class _Job:
    state: TrainState
    staging: Staging | StorageError
    """An error: the copies' memory still belongs to a save that hangs."""
    journal: bytes
    bytes: int
    started: float
    staged: float | None = None
    blocked_seconds: float = 0.0
    written: float | None = None


class Saves:
    def __init__(
        self, publisher: Publisher, together: Together, prune: Callable[[Commit], None]
    ) -> None:
        """`prune` runs in the store's thread of rank 0 after each commit."""
        self._publisher, self._together, self._prune = publisher, together, prune
        rank = together.rank
        self._is_first = rank.is_first
        self._stager = Stager(rank.device)
        self._saver = Worker("checkpoint")
        self._ended: queue.SimpleQueue[tuple[_Job, Commit | None, Exception | None]] = (
            queue.SimpleQueue()
        )
        self._job: _Job | None = None
        self._running: Future[None] | None = None
        self._beside: Future[Any] | None = None
        self._failures = 0
        self._untold: list[Outcome] = []
        self.last: Outcome | None = None
        self.latest: Commit | None = None
        """The newest commit of the lineage."""
        if rank.device.type == "cuda":  # a thread begins on device 0
            self._saver.submit(lambda: torch.cuda.set_device(rank.device))

    def reserve(self, tensors: Tensors) -> None:
        """Takes the memory that copies of `tensors` need."""
        self._stager.reserve(tensors)

    def start(self, state: TrainState, tensors: Tensors, journal: bytes) -> None:
        """Begins a save, after the one before it has ended. Every rank does, even where the save
        must fail: they find out together."""
        mark = time.monotonic()
        self.wait()
        staging = self._together.hang() or self._stager.start(tensors)
        size = sum(tensor.nbytes for tensor in map(local, tensors.values()))
        job = self._job = _Job(state, staging, journal, size, started=mark)
        self._running = self._saver.submit(lambda: self._run(job))
        job.blocked_seconds = time.monotonic() - mark

    def before_update(self) -> None:
        """Returns when the live tensors may change (on a GPU: queues that wait on the device)."""
        job = self._job
        if job is None or isinstance(job.staging, StorageError) or job.staged is not None:
            return
        mark = time.monotonic()
        job.staging.before_update()
        job.blocked_seconds += time.monotonic() - mark

    def poll(self) -> list[Outcome]:
        """The outcomes that were not told yet; never waits."""
        self.collect()
        untold, self._untold = self._untold, []
        return untold

    def beside(self, job: Callable[[], T]) -> Future[T]:
        """Runs a collective of the store's in the thread of saves, behind what is there; every rank
        submits it at the same point. It must not raise."""
        self._beside = self._saver.submit(job)
        return self._beside

    def wait(self) -> None:
        """Returns once the save in flight has ended, as it does when the store stands still: `last`
        says what became of it; and so has what was to be written beside it."""
        for running in (self._running, self._beside):
            if running is not None:
                running.result()
        self.collect()

    @property
    def in_flight(self) -> TrainState | None:
        """What is being saved; for any thread."""
        job, running = self._job, self._running
        return job.state if job is not None and running is not None and not running.done() else None

    def _run(self, job: _Job) -> None:
        """In the thread: writes, tells, has old checkpoints removed."""
        commit: Commit | None = None
        failure: Exception | None = None

        def staged() -> Tensors:
            if isinstance(job.staging, StorageError):
                raise job.staging
            copies = job.staging.finish()
            job.staged = time.monotonic()
            return copies

        try:
            commit = self._publisher.publish(job.state, staged, job.journal)
        except CheckpointException as error:  # no Exception: DCP's sum of all ranks' errors
            failure = StorageError(str(error))
        except Exception as error:  # noqa: BLE001 (a save that fails must not end training)
            failure = error
        job.written = time.monotonic()
        self._ended.put((job, commit, failure))
        if commit is not None:
            tip = commit
            self._together.worker.submit(lambda: self._prune(tip))

    def collect(self) -> None:
        """Takes over what the thread has ended; never waits."""
        while not self._ended.empty():
            job, commit, error = self._ended.get()
            if commit is None:
                assert error is not None  # one of the two
                self.last = self._failed(job, error)
            else:
                self.last = self._succeeded(job, commit)
            self._untold.append(self.last)

    def _succeeded(self, job: _Job, commit: Commit) -> Outcome:
        assert job.staged is not None  # else there were no tensors to commit
        assert job.written is not None
        self._failures = 0
        self.latest = commit
        outcome = Outcome(
            step=job.state.step,
            commit=commit,
            blocked_seconds=job.blocked_seconds,
            staging_seconds=job.staged - job.started,
            write_seconds=job.written - job.staged,
            bytes=job.bytes,
        )
        if self._is_first:
            log.event(
                "checkpoint_committed",
                step=outcome.step,
                bytes=commit.size,
                blocked_seconds=round(outcome.blocked_seconds, 3),
                staging_seconds=round(outcome.staging_seconds, 3),
                write_seconds=round(outcome.write_seconds, 3),
            )
        return outcome

    def _failed(self, job: _Job, failure: Exception) -> Outcome:
        self._failures += 1
        for_good = isinstance(failure, FencedError | RanksLostError)
        outcome = Outcome(
            step=job.state.step,
            commit=None,
            failure=failure,
            failures_in_a_row=self._failures,
            give_up=for_good or self._failures >= FAILURES_IN_A_ROW,
            blocked_seconds=job.blocked_seconds,
        )
        log.event(
            "checkpoint_failed",
            level=logging.WARNING,
            step=outcome.step,
            error=outcome.error,
            failures_in_a_row=self._failures,
        )
        return outcome
