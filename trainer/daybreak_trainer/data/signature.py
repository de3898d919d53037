"""A signature of the samples that a step was trained on, the same however they were split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def signature(positions: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> int:
    """Sum modulo 2^64 of a hash of each (position, index) pair.

    A sum, so ranks add their parts up; a hash of the pair (splitmix64's mixing), so two samples
    that change places, or one seen twice, change it.
    """
    with np.errstate(over="ignore"):
        mixed = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= indices.astype(np.uint64) + np.uint64(0xD1B54A32D192ED03)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        return int(np.add.reduce(mixed, dtype=np.uint64))
