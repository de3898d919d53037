"""Time that passes only as a test says, for code that waits for as long as something moves.

A machine that stands still for a while is then no store that does: put in the place of the module
`time` where that code reads it.
"""

from __future__ import annotations

import threading


class LookedAtClock:
    """`each_look_seconds` pass whenever it is read."""

    def __init__(self, each_look_seconds: float = 0.0) -> None:
        self._now, self._each_look = 1000.0, each_look_seconds
        self._looks = 0
        self._changed = threading.Condition()

    def monotonic(self) -> float:
        with self._changed:
            self._now += self._each_look
            self._looks += 1
            self._changed.notify_all()
            return self._now

    @property
    def now(self) -> float:
        """Without a look."""
        return self._now

    def passes(self, seconds: float) -> None:
        """Returns when somebody has seen that so much time is over."""
        with self._changed:
            self._now += seconds
            seen = self._looks + 1
            assert self._changed.wait_for(lambda: self._looks >= seen, 60.0), "nobody looks"
