"""Finds loss spikes: one value far above what the last steps had.

The yardstick is robust, so that a spike does not raise it: the median of a window, and the noise as
the median difference of neighbours, to which the fall of the loss itself adds nothing. Only the
rise is reported, not each step of a plateau; a plateau that stays becomes the window's new normal
after half its length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from statistics import median

WINDOW_STEPS = 128
MINIMUM_STEPS = 32
_DEVIATIONS = 8.0
"""Standard deviations above the median. Normal noise reaches 8 less than once in 10^15 steps, but
32 values tell its width to a fifth only, and real noise is skewed: a test holds that there is no
alarm in 50,000 steps."""
_NORMAL_DIFFERENCE = 1.4826 / 2**0.5
"""Standard deviations of normal noise in the median difference of two of its values."""
_RISE = 1.3
"""A quiet loss has deviations of nothing; less than a third more is never worth a look."""


@dataclass(frozen=True)
class Spike:
    step: int
    loss: float
    typical: float
    """The median of the window before it."""


class SpikeDetector:
    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._is_up = False

    def reset(self) -> None:
        """Another stage began: other images, another loss."""
        self._losses.clear()
        self._is_up = False

    def observe(self, step: int, loss: float) -> Spike | None:
        """The spike that begins at this step, if one does. What is not finite has its own policy
        and is passed over."""
        if not isfinite(loss):
            return None
        typical, is_up = loss, False
        if len(self._losses) >= MINIMUM_STEPS:
            typical = median(self._losses)
            differences = (abs(after - before) for before, after in pairwise(self._losses))
            deviation = _NORMAL_DIFFERENCE * median(differences)
            is_up = loss > typical * _RISE and loss > typical + _DEVIATIONS * deviation
        began = is_up and not self._is_up
        self._losses.append(loss)
        self._is_up = is_up
        return Spike(step, loss, typical) if began else None
