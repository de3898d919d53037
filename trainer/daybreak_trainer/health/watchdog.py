"""When ranks count as hung, and which of them is the one to look at. Pure.

Both clocks run from the last sign of progress of any rank on any node: one that is stuck holds up
all others within a step, while a rank that waits for another's long work (an export) shows no
progress of its own and is not hung. Until the first step anywhere the patience is that of the
start-up: reading a large checkpoint or compiling for many buckets takes what it takes as long as
bytes or buckets are counted, but some of what is done once (one compilation, opening the data) is
silent for longer than anything in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daybreak_trainer.health.heartbeat import Beat, Phase

STARTED_PHASES = frozenset({Phase.CHECKPOINTING, Phase.EVALUATING, Phase.EXPORTING})
"""Nothing may be left to train: these end the start-up too."""

_STATES = {"T": "stopped", "t": "traced", "D": "in uninterruptible sleep", "Z": "dead"}


@dataclass(frozen=True)
class Clocks:
    """The longest silences."""

    startup_seconds: float
    """Before the first step."""
    progress_seconds: float
    """After it."""


@dataclass(frozen=True)
class Seen:
    """A rank of this node as its launcher sees it now."""

    beat: Beat
    state: str
    """The process's state, a letter of `/proc/<pid>/status`."""


@dataclass(frozen=True)
class Elsewhere:
    """What is known of the other nodes' ranks."""

    started: bool = False
    progressed_at: float = float("-inf")
    """When progress there was last heard of, on this machine's monotonic clock."""


@dataclass(frozen=True)
class Hang:
    """A clock has run out; the rank is the likeliest culprit of this node."""

    local_rank: int
    clock: str
    limit_seconds: float
    silent_seconds: float
    """Since this rank's own last sign of progress."""
    phase: str
    step: int
    detail: str
    state: str

    @property
    def is_frozen(self) -> bool:
        """The kernel does not run it: no doubt about the culprit."""
        return self.state in _STATES

    @property
    def is_alone(self) -> bool:
        """It waits for no other rank, as those in a step do."""
        return self.phase == Phase.DATA

    @property
    def message(self) -> str:
        """One sentence without the rank's number, which only its pod's ranks share."""
        state = f", the process is {_STATES[self.state]}" if self.is_frozen else ""
        detail = f" ({self.detail})" if self.detail else ""
        when = " before the first step" if self.clock == "startup" else ""
        return (
            f"no progress for {self.limit_seconds:g} s{when}; the rank has been at "
            f"'{self.phase}'{detail} after step {self.step} for {self.silent_seconds:.0f} s{state}"
        )


def has_started(seen: Sequence[Seen]) -> bool:
    """Whether any of these ranks has left the start-up behind."""
    return any(s.beat.steps > 0 or s.beat.phase in STARTED_PHASES for s in seen)


def expired(
    seen: Sequence[Seen], elsewhere: Elsewhere, started_at: float, now: float, clocks: Clocks
) -> Hang | None:
    """The verdict at `now`; `started_at` is when this node's ranks were started."""
    if not seen:
        return None
    last = max(started_at, elsewhere.progressed_at, *(s.beat.progressed_at for s in seen))
    started = has_started(seen) or elsewhere.started
    if now - last < (clocks.progress_seconds if started else clocks.startup_seconds):
        return None
    return suspect(seen, elsewhere, now, clocks)


def suspect(seen: Sequence[Seen], elsewhere: Elsewhere, now: float, clocks: Clocks) -> Hang:
    """The likeliest culprit where a clock has run out, here or on another node: the rank that the
    kernel does not run; else the one that is behind; and of those in one step, one that still waits
    for its data, for the others may be waiting for it, or the one that has been where it is for
    longest."""
    worst = max(
        seen,
        key=lambda s: (
            s.state in _STATES,
            -s.beat.step,
            s.beat.phase == Phase.DATA,
            -s.beat.progressed_at,
        ),
    )
    beat, started = worst.beat, has_started(seen) or elsewhere.started
    return Hang(
        local_rank=beat.local_rank,
        clock="progress" if started else "startup",
        limit_seconds=clocks.progress_seconds if started else clocks.startup_seconds,
        silent_seconds=now - beat.progressed_at,
        phase=beat.phase,
        step=beat.step,
        detail=beat.detail,
        state=worst.state,
    )


def process_state(pid: int) -> str:
    """The state letter of a process, `Z` where there is none any more."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 (a kernel file)
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
