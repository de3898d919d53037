"""Which Events of a run are on record, and how many more it may have now.

Only what a look need not send again is kept here: the name of an Event follows from what it says,
so a second one would be refused (`Cluster.record`). A run whose worker has something new to say at
every poll gets no more than a few: the limit is of the kind that client-go's recorders have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from daybreak_operator.cache import Key
from daybreak_operator.draft import EventNote

_BURST, _SECONDS_EACH = 25.0, 30.0
_MAX_TOLD = 256
"""Notes of a run that are remembered."""


@dataclass
class _Run:
    since: float
    left: float = _BURST
    told: set[tuple[str, EventNote]] = field(default_factory=set)
    """With the UID of the run."""


class EventLog:
    """Of all runs; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[Key, _Run] = {}

    def news(self, key: Key, uid: str, notes: Iterable[EventNote]) -> tuple[EventNote, ...]:
        """Those that are not on record yet, as many as the run may have; the rest is never told."""
        run = self._runs.setdefault(key, _Run(self._clock()))
        now = self._clock()
        run.left = min(_BURST, run.left + (now - run.since) / _SECONDS_EACH)
        run.since = now
        fresh = [note for note in notes if (uid, note) not in run.told]
        return tuple(fresh[: int(run.left)])

    def recorded(self, key: Key, uid: str, notes: tuple[EventNote, ...]) -> None:
        """These have been written, or given up."""
        run = self._runs[key]
        if len(run.told) > _MAX_TOLD:
            run.told.clear()
        run.told.update((uid, note) for note in notes)
        run.left -= len(notes)

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._runs.pop(key, None)
