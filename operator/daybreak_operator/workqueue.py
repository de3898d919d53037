"""The work queue: which key is to be looked at next.

A key is queued once however often it is added, and in nobody else's hands while it is being looked
at; what is added meanwhile is looked at again afterwards. Keys come out in the order in which they
came in, in two lanes: where both have some, three that came to be first for one that did not. One
that fails is tried again after a growing pause. One that is added without end, by
somebody who writes to an object in a loop, gets a few looks a second and the others get theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable
from random import Random
from typing import Generic, TypeVar

_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS, _MAX_DOUBLINGS = 0.2, 60.0, 16
_BURST_LOOKS, _LOOKS_PER_SECOND = 20, 2.0
_LANE_TURNS = 4
"""One of so many turns is the second lane's."""
K = TypeVar("K", bound=Hashable)


def back_off_seconds(failures: int) -> float:
    """The longest wait after so many failures in a row, from 1: doubled each time, up to a limit
    (the exponent has one too: 2.0**1024 is an error, and a day of failures comes so far)."""
    doublings = min(failures - 1, _MAX_DOUBLINGS)
    return min(_FIRST_BACKOFF_SECONDS * 2.0**doublings, _MAX_BACKOFF_SECONDS)


class WorkQueue(Generic[K]):
    """For one event loop; nothing here waits but `get`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._dice = Random()
        self._ready: asyncio.Queue[None] = asyncio.Queue()
        """As many items as keys wait; one more when the queue is closed."""
        self._first: dict[K, float] = {}
        self._others: dict[K, float] = {}
        """Since when each queued key has been waiting, oldest first."""
        self._turn = 0
        self._active: dict[K, float] = {}
        """Since when each key has been looked at."""
        self._dirty: set[K] = set()
        self._failures: Counter[K] = Counter()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._looks: dict[K, tuple[float, float]] = {}
        """How many looks a key may have at once, and when that was so."""
        self._closed = False

    def __len__(self) -> int:
        """How many keys wait."""
        return len(self._first) + len(self._others)

    def add(self, key: K, *, first: bool = False) -> None:
        """Have the key looked at soon, in place of any later time; `first`: before others."""
        if self._closed or self._waits(key):
            return
        if key in self._active:
            self._dirty.add(key)
        elif (pause := self._too_many(key)) > 0:
            self.add_after(key, pause)
        else:
            self._drop_timer(key)
            lane = self._first if first else self._others
            lane[key] = self._clock()
            self._ready.put_nowait(None)

    def add_after(self, key: K, seconds: float) -> None:
        """Have the key looked at then, unless it is before."""
        if self._closed or self._waits(key):
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is None or timer.when() > loop.time() + seconds:
            self._drop_timer(key)
            self._timers[key] = loop.call_later(seconds, self._due, key)

    async def get(self) -> K | None:
        """The next key, which is the caller's until `done`; None when the queue is closed."""
        await self._ready.get()
        if self._closed:
            self._ready.put_nowait(None)  # for the others who wait
            return None
        self._turn = (self._turn + 1) % _LANE_TURNS
        lane = self._first if self._first and (self._turn or not self._others) else self._others
        key = next(iter(lane))
        del lane[key]
        self._active[key] = self._clock()
        return key

    def done(self, key: K) -> None:
        """The look is over."""
        del self._active[key]
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def failed(self, key: K) -> float:
        """Notes a failure; returns after how many seconds to look again."""
        self._failures[key] += 1
        return back_off_seconds(self._failures[key]) * self._dice.uniform(0.5, 1.0)

    def failures(self, key: K) -> int:
        """How many in a row."""
        return self._failures[key]

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    def forget(self, key: K) -> None:
        """What the key stood for is gone."""
        self._failures.pop(key, None)
        self._looks.pop(key, None)
        self._drop_timer(key)

    def close(self) -> None:
        """Nothing comes out any more, and nothing goes in."""
        self._closed = True
        for key in list(self._timers):
            self._drop_timer(key)
        self._first.clear()
        self._others.clear()
        self._ready.put_nowait(None)

    @property
    def rush(self) -> bool:
        """Whether keys wait that are to come first."""
        return bool(self._first)

    @property
    def closed(self) -> bool:
        return self._closed

    def oldest_seconds(self) -> float:
        """How long the key that came first has been waiting."""
        return max(self._age(self._first), self._age(self._others))

    def longest_look_seconds(self) -> float:
        """How long the slowest look of now has taken so far."""
        return self._age(self._active)

    def _waits(self, key: K) -> bool:
        return key in self._first or key in self._others

    def _age(self, since: dict[K, float]) -> float:
        return self._clock() - next(iter(since.values())) if since else 0.0

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _drop_timer(self, key: K) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()

    def _too_many(self, key: K) -> float:
        """A token bucket for each key: seconds until it may be looked at, and 0 takes a token."""
        now = self._clock()
        tokens, since = self._looks.get(key, (float(_BURST_LOOKS), now))
        tokens = min(tokens + (now - since) * _LOOKS_PER_SECOND, float(_BURST_LOOKS))
        if tokens < 1:
            return (1 - tokens) / _LOOKS_PER_SECOND
        self._looks[key] = (tokens - 1, now)
        return 0.0
