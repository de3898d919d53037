"""Finds ranks that hold up the others: a score for each, relative to the fast ones. Pure.

Every rank says how long its own work took in each step, waiting for others left out (`own_work`),
and all see what all said. A score of 1 is as fast as the fast ranks, 0.5 takes twice as long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WINDOW_STEPS = 50
SLOW_SCORE = 0.7
_LEAST_SECONDS = 1e-3
"""Work of less is all noise of clocks and scheduling."""


@dataclass(frozen=True)
class Straggler:
    rank: int
    score: float
    seconds: float
    """The rank's own work, the median of the window."""
    typical_seconds: float
    """That of the fast ranks."""


def scores(work: Sequence[float]) -> list[float]:
    """A score in 0..1 for each rank from its seconds of own work; 1 where a rank had no work.

    The yardstick is the lower quartile: with few ranks the fastest, with many none that was merely
    lucky.
    """
    busy = sorted(seconds for seconds in work if seconds > 0)
    if not busy:
        return [1.0] * len(work)
    fast = max(busy[(len(busy) - 1) // 4], _LEAST_SECONDS)
    return [min(1.0, fast / seconds) if seconds > fast else 1.0 for seconds in work]


class Stragglers:
    """Follows the ranks of one round."""

    def __init__(self, world: int) -> None:
        self._work: list[deque[float]] = [deque(maxlen=WINDOW_STEPS) for _ in range(world)]
        self._seen = 0
        self._slow: frozenset[int] = frozenset()
        self._found: frozenset[int] = frozenset()
        self._typical = [0.0] * world
        self.scores = [1.0] * world
        """Of the last whole window."""

    def observe(self, work: Sequence[float]) -> list[Straggler]:
        """One step: each rank's seconds of own work for an image, 0 where it had none. Returns, at
        the end of a window, the ranks that were slow in it and in the one before, once.

        A window's figure is its median: a rank is slow if more than half its steps were.
        """
        for window, seconds in zip(self._work, work, strict=True):
            window.append(seconds)
        self._seen += 1
        if self._seen % WINDOW_STEPS:
            return []
        self._typical = [median(window) for window in self._work]
        self.scores = scores(self._typical)
        before = self._slow
        self._slow = frozenset(n for n, score in enumerate(self.scores) if score < SLOW_SCORE)
        new = (self._slow & before) - self._found
        self._found = self._slow & before
        return [self._straggler(rank) for rank in sorted(new)]

    @property
    def slowest(self) -> Straggler | None:
        """Of the ranks that were slow in the last whole window and in the one before; None where
        there are none."""
        if not self._found:
            return None
        return self._straggler(min(self._found, key=lambda rank: self.scores[rank]))

    def _straggler(self, rank: int) -> Straggler:
        score, seconds = self.scores[rank], self._typical[rank]
        return Straggler(rank, score, seconds, seconds * score)
