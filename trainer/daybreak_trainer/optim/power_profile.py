"""Power-function averages as functions of time, and the one that others come closest to.

An average of width `deviation` at time t weighs the weights of each earlier time tau by
`(gamma + 1) tau^gamma / t^(gamma + 1)`: its length grows with the run, early noise is forgotten.
Averages of a few widths at a few times span a space of such profiles; which of them is nearest to a
wanted one is a small system of equations, whatever the size of the model.

Source: EDM2 (arXiv 2312.02696), section 3 and appendix C. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import numpy.typing as npt

WIDEST = 0.28
"""Wider than 0.2887 is no power function: gamma would be negative."""


@dataclass(frozen=True)
class Profile:
    """Which weights an average is of."""

    deviation: float
    """Standard deviation of the times that it weighs, over `samples`."""
    samples: float
    """Time at which it was taken, in samples seen."""

    @property
    def gamma(self) -> float:
        return gamma(self.deviation)

    def inner(self, other: Profile) -> float:
        """The integral over time of the product of both."""
        first, second = sorted((self, other), key=lambda profile: profile.samples)
        a, b = first.gamma, second.gamma
        ratio = first.samples / second.samples
        return float((a + 1) * (b + 1) / (a + b + 1) * ratio**b / second.samples)


@dataclass(frozen=True)
class Combination:
    """A wanted average as a weighted sum of those that were kept."""

    coefficients: npt.NDArray[np.float64]
    """They add up to 1."""
    error: float
    """Norm of the difference of both profiles over that of the wanted one: 0 is exact."""


@lru_cache
def gamma(deviation: float) -> float:
    """The exponent of the power function of this relative width.

    The width is `sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))`; solved for gamma, this is the
    largest real root of a cubic.

    Raises:
        ValueError: no power function is so wide.
    """
    if not 0 < deviation <= WIDEST:
        raise ValueError(f"a deviation of {deviation:g} is not above 0 and at most {WIDEST}")
    inverse = deviation**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root)))


def combine(kept: Sequence[Profile], wanted: Profile) -> Combination:
    """The weighted sum of `kept`, its coefficients adding up to 1, that is closest to `wanted` in
    the mean square over time.

    Raises:
        ValueError: nothing was kept.
    """
    if not kept:
        raise ValueError("no average was kept")
    if wanted in kept:
        exact = np.array([1.0 if profile == wanted else 0.0 for profile in kept])
        return Combination(exact / exact.sum(), 0.0)
    count = len(kept)
    # In units of the latest time and with profiles of unit norm, which keeps the numbers near 1.
    norms = np.array([sqrt(profile.inner(profile)) for profile in kept])
    size = sqrt(wanted.inner(wanted))
    matrix = np.zeros((count + 1, count + 1))
    gram = np.array([[a.inner(b) for b in kept] for a in kept])
    matrix[:count, :count] = gram / np.outer(norms, norms)
    cross = np.array([profile.inner(wanted) for profile in kept]) / (norms * size)
    target = np.append(cross, 1.0)
    # The last row and column are the condition on the sum, and its multiplier.
    matrix[count, :count] = matrix[:count, count] = size / norms
    scaled = np.linalg.lstsq(matrix, target, rcond=None)[0][:count]
    square = scaled @ matrix[:count, :count] @ scaled - 2 * scaled @ cross + 1.0
    coefficients = scaled * size / norms
    return Combination(coefficients / coefficients.sum(), sqrt(max(square, 0.0)))
