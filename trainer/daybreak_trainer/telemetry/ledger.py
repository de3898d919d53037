"""What the run's time was spent on: productive seconds, and lost seconds by cause.

Every moment from the launcher's start on belongs to exactly one account. They travel in the
checkpoint (`TrainState.ledger`) from attempt to attempt, and in `LedgerFile` from one process of an
attempt to the next, and so count the whole run, but for what an attempt spends after the ledger of
its last commit was drawn up. Seconds are the group's: ranks work in step, and rank 0's ledger
counts.

    ledger = Ledger(started=process_started())      # from here on: startup
    with ledger.during("restore"): ...
    ledger.resumed(..., held_since=process_started(os.getppid()))
    ledger.begin_steps()                            # from here on: productive
    with ledger.during("data_wait"): batch = next(batches)
    ledger.step_finished(step)
    ledger.step_skipped(step)                       # known later: its time was lost
    ledger.committed(step)                          # what came before it can not be lost any more
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import Field, ValidationError

from daybreak_trainer.contract import Message

Cause = Literal[
    "startup",
    "restore",
    "compile",
    "data_wait",
    "checkpoint",
    "evaluation",
    "export",
    "rolled_back",
    "skipped",
]
"""startup: from the launcher's start to the first step, and from the end of ranks to the next step,
as far as it is none of the others · restore: reading a checkpoint · compile: before the first step
· data_wait: the loop waits for a batch · checkpoint: training is held up by a save · rolled_back:
steps after the commit that was gone on from, in this process or one before it · skipped: steps
without a finite gradient."""
Account = Literal["productive"] | Cause
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
PRODUCTIVE: Final = "productive"
LEDGER_FILE: Final = "ledger.json"
"""Under the work folder."""


class LedgerRecord(Message):
    """What a process leaves behind while it works, for one that comes after it if it dies."""

    attempt: int
    unix_time: float = Field(description="When it was written.")
    seconds: dict[str, float]


@dataclass
class _Step:
    number: int
    productive: float


class Ledger:
    """The accounts of one process's life on top of those that a checkpoint brings.

    `started` is on the same clock as `clock`, which is replaced in tests.
    """

    def __init__(
        self, *, started: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._started = self._mark = clock() if started is None else started
        self._base: Account = "startup"
        self._inner: list[Account] = []
        self._seconds: dict[Account, float] = dict.fromkeys((PRODUCTIVE, *CAUSES), 0.0)
        self._uncommitted: deque[_Step] = deque()
        self._this_step = 0.0

    # --- what happens ---------------------------------------------------------------------------

    @contextmanager
    def during(self, cause: Cause) -> Iterator[None]:
        """The time inside is lost to `cause`, but for what an inner `during` takes out of it."""
        self._settle()
        self._inner.append(cause)
        try:
            yield
        finally:
            self._settle()
            self._inner.pop()

    def begin_steps(self) -> None:
        """Start-up is over: time is productive from now on, where nothing else is said."""
        self._settle()
        self._base = PRODUCTIVE

    def step_finished(self, step: int) -> None:
        """The productive time since the last step is step `step`'s."""
        self._settle()
        self._uncommitted.append(_Step(step, self._this_step))
        self._this_step = 0.0

    def step_skipped(self, step: int) -> None:
        """Step `step`, finished before, changed no weights: its time was lost."""
        for record in reversed(self._uncommitted):
            if record.number == step:
                self._move(record, "skipped")
                return

    def committed(self, step: int) -> None:
        """A checkpoint holds everything up to step `step`."""
        while self._uncommitted and self._uncommitted[0].number <= step:
            self._uncommitted.popleft()

    def rolled_back(self, step: int) -> None:
        """Training goes on from step `step`: what came after it was trained in vain."""
        self._settle()
        self._move(_Step(step, self._this_step), "rolled_back")  # what was begun of the next one
        self._this_step = 0.0
        while self._uncommitted and self._uncommitted[-1].number > step:
            self._move(self._uncommitted.pop(), "rolled_back")

    def resumed(
        self,
        committed: Mapping[str, float],
        last: LedgerRecord | None = None,
        *,
        attempt: int = 0,
        started_unix_time: float = 0.0,
        held_since: float | None = None,
    ) -> None:
        """Adds what the run had spent before this process; called once, after a restore.

        `committed` is the checkpoint's ledger; `last` is what the process before this one left,
        where that can still be read. With it, what was trained after the commit is known to be
        lost; and if it was of this attempt, which holds its devices without a pause, so is the time
        between the two processes. Where it left nothing, this is the attempt's first process, or
        those before it died before they had resumed: all time since `held_since` (on this ledger's
        clock), when the attempt's launcher was started, went into starting. So a record has to be
        left as soon as this was called.
        """
        before, unknown = dict(committed), 0.0
        if last is not None:
            # The record may be a little older than the commit, which then knows more.
            missed = max(0.0, sum(committed.values()) - sum(last.seconds.values()))
            if not missed:
                before = _in_vain(committed, last.seconds)
            if last.attempt == attempt:
                unknown = started_unix_time - last.unix_time - missed
        elif held_since is not None:
            unknown = self._started - held_since
        before["startup"] = before.get("startup", 0.0) + max(0.0, unknown)
        for account in self._seconds:
            self._seconds[account] += before.get(account, 0.0)

    # --- what it comes to -----------------------------------------------------------------------

    def seconds(self) -> dict[str, float]:
        """Every account up to now; their sum is the time that the run has held its devices."""
        self._settle()
        return {str(account): seconds for account, seconds in self._seconds.items()}

    def _settle(self) -> None:
        """Books the time since the last change."""
        now = self._clock()
        account = self._inner[-1] if self._inner else self._base
        elapsed = now - self._mark
        self._seconds[account] += elapsed
        if account == PRODUCTIVE:
            self._this_step += elapsed
        self._mark = now

    def _move(self, record: _Step, cause: Cause) -> None:
        self._seconds[PRODUCTIVE] -= record.productive
        self._seconds[cause] += record.productive
        record.productive = 0.0


def goodput(seconds: Mapping[str, float]) -> float:
    """Productive over all seconds, 0..1; 0 before there are any."""
    total = sum(seconds.values())
    return seconds.get(PRODUCTIVE, 0.0) / total if total > 0 else 0.0


def lost(seconds: Mapping[str, float]) -> dict[str, float]:
    """Lost seconds by cause."""
    return {cause: seconds.get(cause, 0.0) for cause in CAUSES}


def _in_vain(committed: Mapping[str, float], last: Mapping[str, float]) -> dict[str, float]:
    """The accounts of a process that died, with what it trained after the commit moved."""
    productive = last.get(PRODUCTIVE, 0.0)
    in_vain = max(0.0, productive - committed.get(PRODUCTIVE, 0.0))
    rolled_back = last.get("rolled_back", 0.0) + in_vain
    return {**last, PRODUCTIVE: productive - in_vain, "rolled_back": rolled_back}


def process_started(pid: int | None = None) -> float:
    """When a process, this one by default, was started, on `time.monotonic`'s clock. Linux
    (`/proc`, proc(5))."""
    # The command, field 2, may hold spaces and brackets: fields are counted from its end.
    stat = Path("/proc", "self" if pid is None else str(pid), "stat")
    fields = stat.read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    return time.monotonic() - age


class LedgerFile:
    """Rank 0's ledger on the pod's disk. Replaced whole, so a reader never sees half of it."""

    def __init__(self, work_dir: Path) -> None:
        self._path = work_dir / LEDGER_FILE

    def write(self, record: LedgerRecord) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(record.to_json())
        partial.replace(self._path)

    def read(self) -> LedgerRecord | None:
        """What was written last, or None where nothing was."""
        try:
            return LedgerRecord.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
