"""A run's Events: which are on record, how many more it may have, and that none holds up a run.

Only what a look need not send again is kept here: the name of an Event follows from what it says,
so a second one would be refused (`Cluster.record`). Of each reason a run gets a few, and then one
now and then, as client-go's recorders have it: a worker may have something new to say at every
poll. Events may be kept in an etcd of their own, and be away when nothing else is.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import ClientError
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.cache import Key
from daybreak_operator.cluster import Cluster, Named
from daybreak_operator.draft import EventNote
from daybreak_operator.log import describe

_log = logging.getLogger(__name__)
_BURST, _SECONDS_EACH = 8.0, 30.0
_MAX_TOLD, _MAX_REASONS = 256, 64
"""Notes and reasons of a run that are remembered; a worker may make up reasons."""
_TRIES = 3
_AWAY_SECONDS = 30.0


@dataclass
class _Allowance:
    """What is left of a reason's burst."""

    left: float
    since: float


@dataclass
class _Run:
    told: set[tuple[str, EventNote]] = field(default_factory=set)
    """With the UID of the run."""
    tries: Counter[EventNote] = field(default_factory=Counter)
    """That failed."""
    allowances: dict[str, _Allowance] = field(default_factory=dict)


class EventLog:
    """Of all runs; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[Key, _Run] = {}
        self._away_until = 0.0

    def news(self, key: Key, uid: str, notes: Iterable[EventNote]) -> tuple[EventNote, ...]:
        """Those that are not on record yet, as many as the run may have; the rest is never told."""
        run = self._runs.setdefault(key, _Run())
        fresh: list[EventNote] = []
        for note in notes:
            before = sum(other.reason == note.reason for other in fresh)
            if (uid, note) not in run.told and self._allowance(run, note.reason).left >= before + 1:
                fresh.append(note)
        return tuple(fresh)

    def recorded(self, key: Key, uid: str, notes: tuple[EventNote, ...]) -> None:
        """These have been written, or given up."""
        run = self._runs[key]
        if len(run.told) > _MAX_TOLD:
            run.told.clear()
        run.tries.clear()
        for note in notes:
            run.told.add((uid, note))
            self._allowance(run, note.reason).left -= 1

    async def write(self, cluster: Cluster, key: Key, run: Named, note: EventNote) -> None:
        """Raises what the API server or the network says; the third time the Event is given up, and
        with it those of the next half minute."""
        if self._clock() < self._away_until:
            return
        try:
            await cluster.record(run, note)
        except (ApiException, ClientError, OSError) as error:
            tries = self._runs[key].tries
            tries[note] += 1
            if tries[note] < _TRIES:
                raise
            self._away_until = self._clock() + _AWAY_SECONDS
            _log.warning("no Event can be written: %s", describe(error))
            return
        level = logging.WARNING if note.kind == "Warning" else logging.INFO
        _log.log(level, "%s: %s", note.reason, note.message)

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._runs.pop(key, None)

    def _allowance(self, run: _Run, reason: str) -> _Allowance:
        now = self._clock()
        if reason not in run.allowances and len(run.allowances) >= _MAX_REASONS:
            run.allowances.clear()
        known = run.allowances.setdefault(reason, _Allowance(_BURST, now))
        known.left = min(_BURST, known.left + (now - known.since) / _SECONDS_EACH)
        known.since = now
        return known
