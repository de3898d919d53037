"""How much of a file to ask a store for at a time: as much as it sends in a few seconds."""

from __future__ import annotations

_SMALLEST, _FIRST, _LARGEST = 1 << 16, 1 << 22, 1 << 23
"""The largest is what a download holds in memory; its requests cost a few percent of its time."""
_QUICK_SECONDS, _SLOW_SECONDS = 2.0, 10.0


class Pace:
    """Of one store. Several threads may tell it what they saw; the last one counts."""

    def __init__(self) -> None:
        self.size = _FIRST
        """Bytes to ask for."""

    def took(self, size: int, seconds: float) -> None:
        """A request for `size` bytes was answered."""
        if seconds < _QUICK_SECONDS:
            self.size = min(max(self.size, 2 * size), _LARGEST)
        elif seconds > _SLOW_SECONDS:
            self.size = max(min(self.size, size // 2), _SMALLEST)

    def failed(self, size: int) -> None:
        """A request for `size` bytes was not answered in time, or broke off."""
        self.size = max(min(self.size, size // 4), _SMALLEST)
