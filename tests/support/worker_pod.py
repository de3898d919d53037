"""A worker pod in a process of its own, for `test_launch.py`: the launcher with scripted ranks.

Run by `runpy` with three globals: `environment` of the pod, `ranks`, what each local rank does, and
`ready`, where a rank says that it does it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

environment: dict[str, str] = globals()["environment"]
ranks: list[str] = globals()["ranks"]
ready: Connection = globals()["ready"]

os.environ.update(environment)

from daybreak_trainer import launch  # noqa: E402 (as in a pod, the environment comes first)
from daybreak_trainer.contract import CheckpointRef, Termination  # noqa: E402
from daybreak_trainer.data.errors import ShardError  # noqa: E402
from daybreak_trainer.rank import (  # noqa: E402
    Standing,
    StopRequestedError,
    done,
    failure,
    write_record,
)

NUMBER = "LOCAL_RANK"
COMMIT = CheckpointRef(step=7, time="2026-01-01T00:00:00Z", url="/checkpoints/7")


def _leave(record: Termination) -> int:
    write_record(Path(environment["DAYBREAK_WORK_DIR"]), int(os.environ[NUMBER]), record)
    return record.exit_code


def complete() -> int:
    return _leave(done(int(os.environ[NUMBER]), Standing(step=9)))


def bad_data() -> int:
    return _leave(failure(ShardError("shard 3 is damaged"), int(os.environ[NUMBER]), Standing()))


def lose_peer() -> int:
    """Ends as a rank whose peer vanishes does, as soon as torchrun ends it."""
    _until_stopped()
    error = RuntimeError("Connection closed by peer")
    return _leave(failure(error, int(os.environ[NUMBER]), Standing()))


def checkpoint() -> int:
    _until_stopped()
    return _leave(failure(StopRequestedError(COMMIT), int(os.environ[NUMBER]), Standing(step=7)))


def checkpoint_at_once() -> int:
    return _leave(failure(StopRequestedError(COMMIT), int(os.environ[NUMBER]), Standing(step=7)))


def hang() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.send(os.getpid())
    while True:
        signal.pause()


def die(number: int) -> Callable[[], int]:
    def main() -> int:
        os.kill(os.getpid(), number)
        return 1

    return main


def leave_nothing() -> int:
    os._exit(3)


def _until_stopped() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ready.send(os.getpid())
    signal.sigwait({signal.SIGTERM})


SCRIPTS: dict[str, Callable[[], int]] = {
    "complete": complete,
    "bad data": bad_data,
    "lose peer": lose_peer,
    "checkpoint": checkpoint,
    "checkpoint at once": checkpoint_at_once,
    "hang": hang,
    "segfault": die(signal.SIGSEGV),
    "abort": die(signal.SIGABRT),
    "killed": die(signal.SIGKILL),
    "leave nothing": leave_nothing,
}


def rank_main() -> int:
    return SCRIPTS[ranks[int(os.environ[NUMBER])]]()


sys.exit(launch.main(rank_main))
