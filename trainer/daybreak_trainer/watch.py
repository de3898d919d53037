"""Watches a node's ranks through one round: heeds a stop, the other nodes, and the clocks."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from daybreak_trainer.contract import ExitCode, Termination
from daybreak_trainer.ending import Ending, how_ended
from daybreak_trainer.health import stacks
from daybreak_trainer.health.grace import abandon_seconds, usable_seconds
from daybreak_trainer.health.memory import oom_kills
from daybreak_trainer.health.watchdog import (
    Clocks,
    Elsewhere,
    Hang,
    Seen,
    expired,
    has_started,
    suspect,
)
from daybreak_trainer.meeting import Meeting
from daybreak_trainer.rank_processes import RankProcesses
from daybreak_trainer.restart import Stalled
from daybreak_trainer.settings import Settings
from daybreak_trainer.stop import Stop
from daybreak_trainer.telemetry import log

HUNG = "Hung"
_TURN_SECONDS = 0.1
_UNKILLABLE_SECONDS = 5.0
"""After SIGKILL: what is still there waits for the kernel, and is left behind."""
_TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Patience:
    """How long a launcher waits for others, in seconds."""

    join: float = 900.0
    """Nodes of an attempt may be scheduled minutes apart."""
    rejoin: float = 120.0
    """Launchers that were there a moment ago."""
    wedged: float = 5.0
    """For ranks whose peers have failed to say so themselves; NCCL never may."""
    leave: float = 60.0
    """For ranks whose peers have left after the commit of a stop."""
    report: float = 60.0
    """For other nodes to say how their ranks ended, once ours have failed: they have been told."""
    finish: float = 300.0
    """The same, once ours are done: theirs may still be busy."""


@dataclass(frozen=True)
class Ended:
    ending: Ending
    stalled: Stalled | None = None
    left_behind: bool = False
    """A rank is still there: even SIGKILL has not ended it."""


class Watch:
    def __init__(
        self,
        ranks: RankProcesses,
        meeting: Meeting,
        number: int,
        settings: Settings,
        stop: Stop,
        patience: Patience,
    ) -> None:
        self._ranks, self._meeting, self._number = ranks, meeting, number
        self._settings, self._stop, self._patience = settings, stop, patience
        health = settings.run.health
        self._clocks = Clocks(health.startup_seconds, health.progress_seconds)
        self._elsewhere = Elsewhere()
        self._heard = self._marks = 0
        self._have_started = False
        self._stopping = False
        self._broken: str | None = None
        self._hung: tuple[Stalled, Termination] | None = None
        self._kill_at = float("inf")
        self._unfinished = ""
        self._oom_kills = oom_kills()
        self._unkillable_seconds = _UNKILLABLE_SECONDS

    def to_the_end(self) -> Ended:
        """Returns when none of the ranks runs any more."""
        ranks = self._ranks
        while ranks.are_running:
            ranks.wait(_TURN_SECONDS)
            now = time.monotonic()
            if self._hung is None:
                seen = ranks.seen()
                self._heed_stop()
                self._heed_failures(now)
                self._heed_peers(seen, now)
                self._heed_clocks(seen, now)
            if now >= self._kill_at:
                self._kill(now)
            if now >= self._kill_at + self._unkillable_seconds:
                break
        stalled, hang = self._hung or (None, None)
        exits = tuple(ranks.exits)
        ending = Ending(
            exits,
            self._stopping,
            broken=self._broken,
            hang=hang,
            cut_short=ranks.cut_short,
            unfinished=self._unfinished,
            oom_killed=oom_kills() > self._oom_kills,
        )
        return Ended(ending, stalled, ranks.are_running)

    def _heed_stop(self) -> None:
        requested_at = self._stop.requested_at
        if requested_at is None or self._stopping:
            return
        self._stopping = True
        self._ranks.tell_stop()
        grace = self._settings.run.grace_seconds
        deadline = requested_at + usable_seconds(grace)
        self._kill_at = min(self._kill_at, deadline)
        self._unkillable_seconds = abandon_seconds(grace) - usable_seconds(grace)
        log.event("stop_requested", seconds_left=round(deadline - time.monotonic(), 1))

    def _kill(self, now: float) -> None:
        if self._stopping and self._broken is None and self._ranks.are_running:
            # Ranks of other nodes may wait for ours in a collective until their own clocks end.
            self._break(f"ranks of worker {self._settings.node} were killed by its stop", now)
        self._unfinished = self._unfinished or _unfinished(self._ranks)
        self._ranks.kill()

    def _heed_failures(self, now: float) -> None:
        if self._broken is not None:
            return
        codes = [ended.code for ended in self._ranks.exits]
        failed = [code for code in codes if code not in (ExitCode.DONE, ExitCode.CHECKPOINTED)]
        if failed:
            self._break(f"a rank of worker {self._settings.node} {how_ended(failed[0])}", now)
        elif ExitCode.CHECKPOINTED in codes:
            # The commit is that of all ranks: the others are about to leave, too.
            self._kill_within(self._patience.leave, now)

    def _heed_peers(self, seen: list[Seen], now: float) -> None:
        self._marks = max(self._marks, sum(s.beat.marks for s in seen))
        self._have_started |= has_started(seen)
        news = self._meeting.news(self._number, self._marks, self._have_started)
        if news is None:
            return
        if news.progress > self._heard:
            self._heard = news.progress
            self._elsewhere = Elsewhere(news.started, progressed_at=now)
        if news.broken is None or self._broken is not None:
            return
        if news.broken.startswith(HUNG) and seen:
            self._hang(seen, suspect(seen, self._elsewhere, now, self._clocks))
        self._broken = news.broken
        self._kill_within(self._patience.wedged, now)

    def _heed_clocks(self, seen: list[Seen], now: float) -> None:
        if self._stopping or self._broken is not None:
            return  # the ranks have their last seconds already
        hang = expired(seen, self._elsewhere, self._ranks.started_at, now, self._clocks)
        if hang is not None:
            self._break(f"{HUNG}: worker {self._settings.node}", now)
            self._hang(seen, hang)

    def _break(self, why: str, now: float) -> None:
        """The round is lost: tells the others. Peers get a moment to record what they saw of it."""
        self._broken = why
        self._meeting.say_broken(self._number, why)
        self._kill_within(self._patience.wedged, now)

    def _kill_within(self, seconds: float, now: float) -> None:
        # A stop gives the ranks its grace: some may be about to say that they have committed.
        if not self._stopping:
            self._kill_at = min(self._kill_at, now + seconds)

    def _hang(self, seen: list[Seen], hang: Hang) -> None:
        """Notes where every thread of every rank is, and ends the ranks."""
        self._kill_at = time.monotonic()
        found = stacks.collect(self._settings.work_dir, self._ranks.pids)
        states = {s.beat.local_rank: s for s in seen}
        for local_rank, stack in found.items():
            log.event(
                "rank_stack_dumped",
                level=logging.ERROR,
                of_rank=self._ranks.first_rank + local_rank,
                phase=states[local_rank].beat.phase if local_rank in states else None,
                stack=stack,
            )
        rank = self._ranks.first_rank + hang.local_rank
        frames = stacks.main_thread(found.get(hang.local_rank, "")).splitlines()
        termination = Termination(
            reason=HUNG,
            message=f"rank {rank}: {hang.message}",
            exit_code=ExitCode.HUNG,
            rank=rank,
            step=hang.step,
            traceback="\n".join(frames[:_TRACEBACK_LINES]),
        )
        stalled = Stalled(
            silent_seconds=hang.silent_seconds, frozen=hang.is_frozen, alone=hang.is_alone
        )
        self._hung = stalled, termination
        log.event("ranks_hung", level=logging.ERROR, of_rank=rank, cause=hang.message)


def _unfinished(ranks: RankProcesses) -> str:
    """What the ranks that run are still at: as one says that knows what it waits for, or any."""
    beats = [seen.beat for seen in ranks.seen()]
    if not beats:
        return ""
    beat = max(beats, key=lambda beat: bool(beat.detail))
    detail = f" ({beat.detail})" if beat.detail else ""
    return f"rank {ranks.first_rank + beat.local_rank} was still at '{beat.phase}'{detail}"
