"""Deals numbers out to members in fixed proportions, evenly and without state."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_LONGEST, _SHORTEST = 1 << 20, 1 << 12
_TAG = 0x6379636C65  # "cycle": keeps this use of the seed apart from any other


class Cycle:
    """A fixed pattern that repeats: number `n` belongs to member `pattern[n % period]`.

    Each member's part of a period is its share to within one number, never none, and lies evenly
    in it: of the first `n` numbers member `m` of `M` has `n × share ± (M + 1)`, for every `n`.
    """

    def __init__(self, shares: Sequence[float], seed: Sequence[int]) -> None:
        """`shares` are relative and positive.

        Raises:
            ValueError: no shares, or one that is not positive.
        """
        relative = np.asarray(shares, dtype=np.float64)
        if not len(relative) or not (np.isfinite(relative).all() and (relative > 0).all()):
            raise ValueError(f"shares must be positive numbers, not {list(shares)}")
        relative = relative / relative.sum()
        self.counts = _counts(relative)
        self.period = int(self.counts.sum())
        phases = np.random.default_rng([_TAG, *seed]).random(len(relative))
        members = np.repeat(np.arange(len(relative)), self.counts)
        nth = np.concatenate([np.arange(count) for count in self.counts])
        even = (nth + phases[members]) / self.counts[members]
        order = np.argsort(even, kind="stable")
        self._members, self._nth = members[order], nth[order]

    def at(self, numbers: Integers) -> tuple[Integers, Integers]:
        """For each number its member, and how many numbers that member had before it."""
        rounds, place = np.divmod(numbers, self.period)
        members = self._members[place]
        return members, rounds * self.counts[members] + self._nth[place]


def _counts(shares: npt.NDArray[np.float64]) -> Integers:
    """Numbers of each member in a period, by largest remainder; at least one each."""
    if len(shares) == 1:
        return np.ones(1, dtype=np.int64)
    period = min(max(ceil(1 / shares.min()), _SHORTEST), _LONGEST)
    exact = shares * period
    counts: Integers = np.maximum(np.floor(exact), 1).astype(np.int64)
    missing = max(period - int(counts.sum()), 0)
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts
