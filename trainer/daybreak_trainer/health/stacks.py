"""Where every thread of a hung rank is: asked for by its launcher, written by the rank's own
signal handler in C, which needs no interpreter lock and so answers whatever holds it."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from daybreak_trainer.health.heartbeat import HEARTBEATS_FOLDER

_SETTLED_SECONDS = 0.2
"""A dump that has not grown for so long is whole."""


def stack_file(work_dir: Path, local_rank: int) -> Path:
    return work_dir / HEARTBEATS_FOLDER / f"{local_rank}.stack"


def register(work_dir: Path, local_rank: int) -> None:
    """In the rank, before anything else: SIGUSR2 writes all threads' stacks into a file.

    A fatal signal (a crash in C) leaves them on standard error.
    """
    path = stack_file(work_dir, local_rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Stays open for the process's life: the handler writes to its descriptor.
    file = path.open("w")
    faulthandler.register(signal.SIGUSR2, file, all_threads=True)
    faulthandler.enable()


def collect(work_dir: Path, pids: Mapping[int, int], wait_seconds: float = 2.0) -> dict[int, str]:
    """Asks the ranks (local rank to process id) for their stacks, and waits for the answers.

    A stopped process is continued with the signal pending, so it says where it was stopped. One in
    uninterruptible sleep says nothing: its stack is missing.
    """
    for pid in pids.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + wait_seconds
    sizes, since = [-1] * len(pids), time.monotonic()
    while time.monotonic() < deadline:
        now = [_size(stack_file(work_dir, rank)) for rank in pids]
        if now != sizes:
            sizes, since = now, time.monotonic()
        elif all(now) and time.monotonic() - since >= _SETTLED_SECONDS:
            break
        time.sleep(0.02)
    found = {rank: _read(stack_file(work_dir, rank)) for rank in pids}
    return {rank: text for rank, text in found.items() if text}


def main_thread(stack: str) -> str:
    """The main thread's frames, innermost first; faulthandler lists it last."""
    return stack.rstrip().rpartition("\n\n")[2]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
