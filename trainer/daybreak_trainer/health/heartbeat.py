"""A rank's signs of life: a small file that the rank writes and its pod's launcher reads.

The launcher watches, not the rank: a rank that is stopped, or whose interpreter is held by a call
into C, cannot watch itself. The file is mapped into memory and never synced, so a sign costs about
a microsecond and no system call.

Signs of life and signs of progress are not the same: only `enter` (once a phase and step), `step`
and `moved` with a count that changed are progress. A rank that retries one download for ever keeps
saying so with `says`, and still counts as hung.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Event, Lock, Thread

HEARTBEATS_FOLDER = "heartbeats"
"""Under the work folder: `<local rank>.beat`, and `<local rank>.stack` (see `stacks`)."""

DETAIL_BYTES = 512
_LAYOUT = struct.Struct(f"<QQdQQQ32s{DETAIL_BYTES}s")
"""Sequence (odd while written), process id, time of the last progress, signs of progress, steps
done by this process, the run's step, phase, detail."""
_READ_TRIES = 20


class Phase(StrEnum):
    """Where a rank is."""

    STARTING = "starting"
    SELF_TEST = "testing devices and storage"
    RESTORING = "restoring"
    COMPILING = "compiling"
    DATA = "waiting for data"
    STEP = "step"
    CHECKPOINTING = "checkpointing"
    EVALUATING = "evaluating"
    EXPORTING = "exporting"


@dataclass(frozen=True)
class Beat:
    """What a rank's file says. Times are of the machine's monotonic clock, in seconds."""

    local_rank: int
    pid: int
    progressed_at: float
    marks: int
    """Signs of progress so far."""
    steps: int
    """Steps that this process has done."""
    step: int
    """The run's step that was done last."""
    phase: str
    detail: str


def beat_file(work_dir: Path, local_rank: int) -> Path:
    return work_dir / HEARTBEATS_FOLDER / f"{local_rank}.beat"


class Heartbeat:
    """The rank's side. Every method may be called from any thread."""

    def __init__(self, work_dir: Path, local_rank: int) -> None:
        file = beat_file(work_dir, local_rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w+b") as opened:
            opened.truncate(_LAYOUT.size)
            self._map = mmap.mmap(opened.fileno(), _LAYOUT.size)
        self._lock = Lock()
        self._sequence = 0
        self._pid = os.getpid()
        self._at = time.monotonic()
        self._marks = self._steps = self._step = 0
        self._phase, self._detail = Phase.STARTING.encode(), b""
        self._entered = {self._phase}
        self._count: float = 0
        with self._lock:
            self._write()

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Begins a phase: progress the first time since the last step, so that a loop between two
        phases that never finishes a step is none."""
        name = phase.encode()
        with self._lock:
            self._phase, self._detail = name, _cut(detail)
            if name not in self._entered:
                self._entered.add(name)
                self._mark()
            self._write()

    def step(self, number: int) -> None:
        """The run's step `number` is done."""
        with self._lock:
            self._steps += 1
            self._step = number
            self._entered = {self._phase}
            self._mark()
            self._write()

    def moved(self, count: float) -> None:
        """A counter of real work within the phase (bytes, images); progress where it changed."""
        with self._lock:
            if count != self._count:
                self._count = count
                self._mark()
                self._write()

    def says(self, detail: str) -> None:
        """What the rank waits for; no progress."""
        with self._lock:
            self._detail = _cut(detail)
            self._write()

    @contextmanager
    def counting(
        self,
        count: Callable[[], float],
        every_seconds: float = 1.0,
        waits_for: Callable[[], str] = lambda: "",
    ) -> Iterator[None]:
        """While the block runs, looks at a counter of real work now and then: a long call shows
        progress as long as, and only if, the counter changes. Also says what the call waits for,
        where that is known."""
        over = Event()

        def look() -> None:
            while not over.wait(every_seconds):
                self.moved(count())
                if detail := waits_for():
                    self.says(detail)

        thread = Thread(target=look, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _mark(self) -> None:
        self._marks += 1
        self._at = time.monotonic()

    def _write(self) -> None:
        sequence = self._sequence = self._sequence + 2
        struct.pack_into("<Q", self._map, 0, sequence - 1)
        fields = (self._pid, self._at, self._marks, self._steps, self._step)
        _LAYOUT.pack_into(self._map, 0, sequence - 1, *fields, self._phase, self._detail)
        struct.pack_into("<Q", self._map, 0, sequence)


def read(work_dir: Path, local_rank: int) -> Beat | None:
    """The launcher's side: what a rank said last, or None where it has said nothing yet."""
    raw = b""
    for _ in range(_READ_TRIES):
        try:
            raw = beat_file(work_dir, local_rank).read_bytes()
        except FileNotFoundError:
            return None
        if len(raw) != _LAYOUT.size:
            return None
        # Odd: between two halves of a write, for good if the rank was stopped just there.
        if raw[0] % 2 == 0:
            break
    _, pid, at, marks, steps, step, phase, detail = _LAYOUT.unpack(raw)
    if pid == 0:
        return None
    return Beat(local_rank, pid, at, marks, steps, step, _text(phase), _text(detail))


def _cut(text: str) -> bytes:
    return text.encode()[:DETAIL_BYTES]


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="ignore")
