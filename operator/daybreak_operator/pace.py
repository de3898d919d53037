"""Which writes of a status can wait.

A status write is the dearest thing that the operator asks of the API server, and it wakes every
watcher. What decides something is written at once: the operator goes on from it, after a restart
too. What only tells how a run is doing is written every few seconds, and is kept here until then:
looks go on from it as if it were stored. An operator that dies before it is written knows no less
than one that had not looked yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import AttemptStatus, TrainingRunStatus
from daybreak_operator.cache import Key
from daybreak_operator.decision import Decision

PROGRESS_SECONDS = 15.0
_NEWS_SECONDS, _RUSH_SECONDS = 5.0, 60.0
_TELLING = frozenset({"progress", "stage", "ledger", "checkpoint", "workers", "conditions"})
"""Fields of a status that nothing but the next look goes by."""
_UNDER_WAY = frozenset({"Queued", "Starting", "Running"})
"""Phases that follow from what the cluster shows of an attempt."""


@dataclass(frozen=True)
class _Held:
    uid: str
    stored: TrainingRunStatus
    latest: TrainingRunStatus


class Pace:
    """Of all runs' status writes. Nothing here waits; `clock` gives seconds."""

    def __init__(
        self,
        progress_seconds: float = PROGRESS_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress_seconds, self._clock = progress_seconds, clock
        self._written: dict[Key, float] = {}
        self._held: dict[Key, _Held] = {}

    def latest(self, key: Key, run: TrainingRun) -> TrainingRun:
        """The run with what was found out since its last write; as it is, where its status is not
        any more the one that this was found out from."""
        held = self._held.get(key)
        if held is None:
            return run
        if (held.uid, held.stored) != (run.uid, run.status):
            del self._held[key]
            return run
        return replace(run, status=held.latest)

    def hold(self, key: Key, run: TrainingRun, decision: Decision, *, rush: bool = False) -> float:
        """Seconds for which a decision about the run, as it is stored, can wait; it is kept as the
        latest then. 0: now, with all that was kept. `rush`: new runs wait for their Jobs, and how
        far others are can be told when these have them."""
        if replace(decision, again_seconds=None) != Decision(decision.status):
            return 0.0  # there is something to do beside the status
        before, after = run.status, decision.status
        written = self._written.get(key)
        if written is None or before == after or not tells_only(before, after):
            return 0.0
        gap = max(self._progress_seconds, _RUSH_SECONDS if rush else 0.0)
        if _headline(before) != _headline(after):
            gap = min(gap, _NEWS_SECONDS)
        left = max(0.0, written + gap - self._clock())
        if left > 0:
            self._held[key] = _Held(run.uid, before, after)
        return left

    def written(self, key: Key) -> None:
        """The status was written just now."""
        self._written[key] = self._clock()
        self._held.pop(key, None)

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._written.pop(key, None)
        self._held.pop(key, None)


def tells_only(before: TrainingRunStatus, after: TrainingRunStatus) -> bool:
    """Whether nothing changes that later decisions need on record."""
    changed = {
        name
        for name in TrainingRunStatus.model_fields
        if name not in _TELLING and getattr(before, name) != getattr(after, name)
    }
    if {before.phase, after.phase} <= _UNDER_WAY:
        changed.discard("phase")
    if _without_times(before.current_attempt) == _without_times(after.current_attempt):
        changed.discard("current_attempt")
    return not changed


def _without_times(attempt: AttemptStatus | None) -> AttemptStatus | None:
    """Without those that a later look finds again."""
    blank = {"admitted_time": None, "first_step_time": None}
    return attempt.model_copy(update=blank) if attempt is not None else None


def _headline(status: TrainingRunStatus) -> tuple[str, bool, dict[str, str]]:
    """What a list of runs shows, and whether the attempt's Job was seen: until that is on record,
    another operator would make a Job anew that somebody has deleted meanwhile."""
    values: dict[str, str] = {c.type: c.status for c in status.conditions}
    return status.phase, status.workers is not None, values
