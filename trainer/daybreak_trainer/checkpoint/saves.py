"""Saves that run beside training: at most one in flight, and a failed one is no end.

The training thread calls `start`, `before_update` and `poll`; everything slow happens in one thread
per rank. What became of a save is an `Outcome`, never an exception.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.distributed.checkpoint.api import CheckpointException

from daybreak_trainer.checkpoint.background import Background
from daybreak_trainer.checkpoint.layout import Commit, TrainState
from daybreak_trainer.checkpoint.publish import Publisher
from daybreak_trainer.checkpoint.staging import Stager, Staging, Tensors, local
from daybreak_trainer.checkpoint.storage import StorageError
from daybreak_trainer.checkpoint.together import FencedError
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.telemetry import log

FAILURES_IN_A_ROW = 3
"""After so many a run that goes on only adds to what the next failure loses."""


@dataclass(frozen=True)
class Outcome:
    """What became of one save, on this rank."""

    step: int
    commit: Commit | None
    """None where it failed: then `error` says why, and the commit before it stands."""
    error: str = ""
    failures_in_a_row: int = 0
    give_up: bool = False
    """The loop is to raise `StorageError(error)`: the store fails again and again, a newer attempt
    has begun, or the ranks cannot save together any more."""
    blocked_seconds: float = 0.0
    """That training stood still for it."""
    staging_seconds: float = 0.0
    """From `start` until the copies were complete."""
    write_seconds: float = 0.0
    """From then until the commit was real."""
    bytes: int = 0
    """That this rank staged and wrote."""


@dataclass
class _Job:
    state: TrainState
    staging: Staging
    journal: bytes
    bytes: int
    started: float = field(default_factory=time.monotonic)
    staged: float | None = None
    blocked_seconds: float = 0.0
    written: float | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    """Whether it is committed is known; old checkpoints may still be on their way out."""


class Saves:
    def __init__(
        self,
        publisher: Publisher,
        rank: Rank,
        prune: Callable[[Commit], None],
        timeout_seconds: float,
    ) -> None:
        self._publisher, self._prune, self._timeout = publisher, prune, timeout_seconds
        self._is_first = rank.is_first
        self._stager = Stager(rank.device)
        self._background = Background("checkpoint")
        self._ended: queue.SimpleQueue[tuple[_Job, Commit | None, Exception | None]] = (
            queue.SimpleQueue()
        )
        self._job: _Job | None = None
        self._failures = 0
        self._hangs = False
        """The save in flight was waited for long enough."""
        self._lost: str | None = None
        """Why the ranks cannot save together any more: a collective that timed out breaks its
        group."""
        self._untold: list[Outcome] = []
        self.last: Outcome | None = None
        self.latest: Commit | None = None
        """The newest commit of the lineage."""
        if rank.device.type == "cuda":  # a thread begins on device 0
            self._background.submit(lambda: torch.cuda.set_device(rank.device))

    def reserve(self, tensors: Tensors) -> None:
        """Takes the memory that copies of `tensors` need."""
        self._stager.reserve(tensors)

    def start(self, state: TrainState, tensors: Tensors, journal: bytes) -> None:
        """Begins a save, after the one before it has ended."""
        mark = time.monotonic()
        is_idle = self._background.wait_idle(self._patience)
        self.collect()
        if not is_idle:
            self._tell(self._hanging(state))
            return
        size = sum(tensor.nbytes for tensor in map(local, tensors.values()))
        job = _Job(state, self._stager.start(tensors), journal, size, started=mark)
        self._job = job
        self._background.submit(lambda: self._run(job))
        job.blocked_seconds = time.monotonic() - mark

    def before_update(self) -> None:
        """Returns when the live tensors may change (on a GPU: queues that wait on the device)."""
        if self._job is None or self._job.staged is not None:
            return
        mark = time.monotonic()
        self._job.staging.before_update()
        self._job.blocked_seconds += time.monotonic() - mark

    def poll(self) -> list[Outcome]:
        """The outcomes that were not told yet; never waits."""
        self.collect()
        untold, self._untold = self._untold, []
        return untold

    def wait(self) -> None:
        """Returns once the save in flight has ended, or hangs: `last` says what became of it."""
        if self._job is not None and not self._job.ended.wait(self._patience):
            self._tell(self._hanging(self._job.state))
        self.collect()

    def settle(self) -> None:
        """Waits until nothing runs, the removal of old checkpoints included, or it hangs."""
        self._background.wait_idle(self._timeout)
        self.collect()

    @property
    def _patience(self) -> float:
        """Seconds to wait for the save in flight: once, for a rank that waits longer looks hung."""
        return 0.0 if self._hangs else self._timeout

    def _run(self, job: _Job) -> None:
        """In the thread: writes, tells, tidies up."""
        commit: Commit | None = None
        failure: Exception | None = None

        def staged() -> Tensors:
            copies = job.staging.finish()
            job.staged = time.monotonic()
            return copies

        try:
            commit = self._publisher.publish(job.state, staged, job.journal)
        except CheckpointException as error:  # no Exception: DCP's sum of all ranks' errors
            failure = StorageError(str(error))
        except StorageError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 (a save that fails must not end training)
            if time.monotonic() - job.started >= self._timeout:
                self._lost = (
                    f"not every rank's part was saved within {self._timeout:.0f} s: the store does "
                    "not answer one of them, or it stands still"
                )
            failure = StorageError(self._lost) if self._lost is not None else error
        job.written = time.monotonic()
        self._ended.put((job, commit, failure))
        job.ended.set()
        if commit is not None:
            self._prune(commit)

    def collect(self) -> None:
        """Takes over what the thread has ended; never waits."""
        while not self._ended.empty():
            job, commit, error = self._ended.get()
            self._hangs = False
            if commit is None:
                assert error is not None  # one of the two
                fenced = isinstance(error, FencedError)
                self._tell(self._failed(job.state, str(error) or repr(error), fenced))
            else:
                self._tell(self._succeeded(job, commit))

    def _tell(self, outcome: Outcome) -> None:
        self._untold.append(outcome)
        self.last = outcome

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

    def _hanging(self, state: TrainState) -> Outcome:
        """Of a save that cannot begin or end."""
        self._hangs = True
        return self._failed(state, f"the store has not answered for {self._timeout:.0f} s", False)

    def _failed(self, state: TrainState, error: str, fenced: bool) -> Outcome:
        self._failures += 1
        log.event(
            "checkpoint_failed",
            level=logging.WARNING,
            step=state.step,
            error=error,
            failures_in_a_row=self._failures,
        )
        return Outcome(
            step=state.step,
            commit=None,
            error=error,
            failures_in_a_row=self._failures,
            give_up=fenced or self._lost is not None or self._failures >= FAILURES_IN_A_ROW,
        )
