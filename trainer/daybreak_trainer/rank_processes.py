"""This node's ranks of one round as processes, with the environment that torchrun would give them.

They are forked after torch and diffusers are imported, so a pod pays for those imports once, and a
restart not at all. The launcher has made sure that nothing has touched CUDA before (`gpus`).

A forked process keeps every lock of the C library as it was: one that another thread of the
launcher held (the resolver's, while a store looks up who connects) it waits for for ever. So all
ranks of a node are forked before any of them goes on: they wait at a gate until `release`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from daybreak_trainer.contract import ExitCode
from daybreak_trainer.ending import RankExit
from daybreak_trainer.health import stacks
from daybreak_trainer.health.heartbeat import Heartbeat, read
from daybreak_trainer.health.watchdog import Seen, process_state

RankMain = Callable[[], int]
_PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`."""


@dataclass(frozen=True)
class _Started:
    local_rank: int
    process: BaseProcess
    gate: connection.Connection


class RankProcesses:
    def __init__(
        self,
        rank_main: RankMain,
        environments: Sequence[Mapping[str, str]],
        first_rank: int,
        work_dir: Path,
    ) -> None:
        """Forks a process an environment, which waits; the first is rank `first_rank` of the
        gang."""
        self.first_rank = first_rank
        self.started_at = time.monotonic()
        self.exits: list[RankExit] = []
        """In order of time; none of those that ended because `kill` did it."""
        self._work_dir = work_dir
        self._killed = False
        self.cut_short = False
        """`kill` found some that had not ended."""
        self._running: dict[int, _Started] = {}
        context = multiprocessing.get_context("fork")
        # A SIGTERM between fork and `_rank_process` waits: it is for the rank, not for the
        # launcher's handler that the rank was born with.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            for local_rank, environment in enumerate(environments):
                gate, ours = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_process, args=(rank_main, environment, local_rank, work_dir, gate)
                )
                process.start()
                gate.close()
                self._running[process.sentinel] = _Started(local_rank, process, ours)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def release(self, environment: Mapping[str, str]) -> None:
        """Lets all of them go on, with what only became known once they were there."""
        for started in self._running.values():
            with started.gate, suppress(BrokenPipeError):  # it has ended already
                started.gate.send(dict(environment))

    @property
    def are_running(self) -> bool:
        return bool(self._running)

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of those that still run, by local rank."""
        return {s.local_rank: _pid(s.process) for s in self._running.values()}

    def wait(self, seconds: float) -> None:
        """Returns once a rank has ended, or after `seconds`."""
        for sentinel in connection.wait(list(self._running), seconds):
            assert isinstance(sentinel, int)  # what `_running` is keyed by
            ended = self._running.pop(sentinel)
            ended.process.join()
            mark_process_dead(_pid(ended.process))  # type: ignore[no-untyped-call]
            code = ended.process.exitcode
            assert code is not None  # it has been joined
            if not self._killed:
                rank = self.first_rank + ended.local_rank
                self.exits.append(RankExit(rank, ended.local_rank, code, time.time()))

    def tell_stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Also what is stopped or stuck; only what the kernel itself waits for stays."""
        self._killed = True
        self.cut_short |= self.are_running
        self._signal(signal.SIGKILL)

    def seen(self) -> list[Seen]:
        """The ranks that run, as they are now."""
        found = []
        for started in self._running.values():
            beat = read(self._work_dir, started.local_rank)
            if beat is not None:
                found.append(Seen(beat, process_state(_pid(started.process))))
        return found

    def _signal(self, number: signal.Signals) -> None:
        # A process that has ended stays a zombie until `wait` joins it: the id is still its own.
        for pid in self.pids.values():
            os.kill(pid, number)


def _pid(process: BaseProcess) -> int:
    assert process.pid is not None  # it was started
    return process.pid


def _rank_process(
    rank_main: RankMain,
    environment: Mapping[str, str],
    local_rank: int,
    work_dir: Path,
    gate: connection.Connection,
) -> None:
    """A rank, in its own process. Non-zero codes leave past destructors: after an error NCCL's and
    gloo's wait for peers that may be gone.

    Until the rank has a handler for it a SIGTERM ends it: there is nothing to save yet.
    """
    # A rank does not outlive its launcher, which holds the store and heeds the stops.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.environ.update(environment)
    stacks.register(work_dir, local_rank)
    Heartbeat(work_dir, local_rank)
    with gate:
        os.environ.update(gate.recv())
    code = rank_main()
    if code != ExitCode.DONE:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
