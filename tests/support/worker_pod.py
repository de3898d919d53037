"""A worker pod in a process of its own, for `worker_pods.py`: the launcher with scripted ranks.

Run by `runpy` with globals: `environment` of the pod; `ranks`, what each local rank does (in each
round, separated by `|`; the last is repeated), or `["train"]` for the trainer itself; `faults` of
its stores; `ready`, where a rank says that it does it with its process id and the round; `patience`
of the launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from storage_faults import Fault, install

environment: dict[str, str] = globals()["environment"]
ranks: list[str] = globals()["ranks"]
faults: tuple[Fault, ...] = globals()["faults"]
ready: Connection = globals()["ready"]
patience: dict[str, float] = globals()["patience"]

os.environ.update(environment)
log = os.open(f"{environment['TEST_FOLDER']}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)

from daybreak_trainer import launch  # noqa: E402 (as in a pod, the environment comes first)
from daybreak_trainer.contract import CheckpointRef, Progress, Termination  # noqa: E402
from daybreak_trainer.data.errors import ShardError  # noqa: E402
from daybreak_trainer.health.heartbeat import Heartbeat, Phase  # noqa: E402
from daybreak_trainer.health.restarts import read as read_restarts  # noqa: E402
from daybreak_trainer.rank import (  # noqa: E402
    Standing,
    StopRequestedError,
    done,
    failure,
    write_record,
)
from daybreak_trainer.telemetry.progress import ProgressFile  # noqa: E402

NUMBER = "LOCAL_RANK"
WORK_DIR = Path(environment["DAYBREAK_WORK_DIR"])
COMMIT = CheckpointRef(step=7, time="2026-01-01T00:00:00Z", url="/checkpoints/7")


def _leave(record: Termination) -> int:
    write_record(WORK_DIR, int(os.environ[NUMBER]), record)
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
    _announce()
    while True:
        signal.pause()


def commit_and_die() -> int:
    """A rank that gets further in every round."""
    at = "2026-01-01T00:00:00Z"
    commit = CheckpointRef(step=_round() + 1, time=at, url="/checkpoints")
    ProgressFile(WORK_DIR).write(
        Progress(
            run_uid="u",
            attempt=1,
            phase="Training",
            checkpoint=commit,
            started_at=at,
            updated_at=at,
        )
    )
    return die(signal.SIGKILL)()


def lockstep() -> int:
    """Training: no rank of any pod is more than a step ahead of another."""
    heartbeat, step = _heartbeat(), 0
    shared, rank = Path(os.environ["TEST_SHARED"]), int(os.environ["RANK"])
    done = [shared / f"{_round()}-{n}" for n in range(int(os.environ["WORLD_SIZE"]))]
    while True:
        if all(file.exists() and file.stat().st_size >= step for file in done) or step == 0:
            heartbeat.enter(Phase.STEP)
            with done[rank].open("ab") as file:
                file.write(b".")
            heartbeat.step(step := step + 1)
            if step == 3:
                _announce()
        time.sleep(0.01)


def wait_for_a_shard() -> int:
    """One step, and then the same thing over and over."""
    heartbeat = _heartbeat()
    heartbeat.enter(Phase.DATA)
    heartbeat.step(1)
    while True:
        heartbeat.enter(Phase.DATA, "waiting for shard.00007.mds")
        time.sleep(0.01)


def compile_for_ever() -> int:
    heartbeat = _heartbeat()
    heartbeat.enter(Phase.COMPILING)
    while True:
        signal.pause()


def compile_long() -> int:
    """For three seconds there is a sign of progress every half."""
    heartbeat = _heartbeat()
    heartbeat.enter(Phase.COMPILING)
    for count in range(1, 7):
        time.sleep(0.5)
        heartbeat.moved(count)
    while True:
        signal.pause()


def reduce_for_ever() -> int:
    """Real collectives; ends as a rank of the trainer does when it loses a peer."""
    import torch
    from torch import distributed

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    try:
        distributed.init_process_group("gloo")
        value = torch.zeros(1)
        distributed.all_reduce(value)
        _announce()
        while not value.item():
            value = torch.tensor([float(bool(stop))])
            distributed.all_reduce(value)
    except RuntimeError as error:
        return _leave(failure(error, int(os.environ["RANK"]), Standing()))
    return _leave(failure(StopRequestedError(COMMIT), int(os.environ["RANK"]), Standing(step=7)))


def starting() -> int:
    """Not so far yet that it heeds a SIGTERM."""
    _announce()
    while True:
        signal.pause()


def die(number: int) -> Callable[[], int]:
    def main() -> int:
        os.kill(os.getpid(), number)
        return 1

    return main


def leave(code: int) -> Callable[[], int]:
    def main() -> int:
        os._exit(code)

    return main


def _until_stopped() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _announce()
    signal.sigwait({signal.SIGTERM})


def _announce() -> None:
    ready.send((os.getpid(), _round(), list(read_restarts(os.environ))))


def _heartbeat() -> Heartbeat:
    return Heartbeat(WORK_DIR, int(os.environ[NUMBER]))


def _round() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


SCRIPTS: dict[str, Callable[[], int]] = {
    "complete": complete,
    "bad data": bad_data,
    "lose peer": lose_peer,
    "checkpoint": checkpoint,
    "checkpoint at once": checkpoint_at_once,
    "hang": hang,
    "starting": starting,
    "segfault": die(signal.SIGSEGV),
    "abort": die(signal.SIGABRT),
    "killed": die(signal.SIGKILL),
    "lockstep": lockstep,
    "wait for a shard": wait_for_a_shard,
    "compile for ever": compile_for_ever,
    "compile long": compile_long,
    "reduce for ever": reduce_for_ever,
    "commit and die": commit_and_die,
    **{f"leave {code}": leave(code) for code in (3, 75, 76, 77, 93)},
}


def rank_main() -> int:
    rounds = ranks[int(os.environ[NUMBER])].split("|")
    return SCRIPTS[rounds[min(_round(), len(rounds) - 1)]]()


install(faults, _announce, Path(environment["TEST_FOLDER"]))
sys.exit(launch.main(None if ranks == ["train"] else rank_main, patience))
