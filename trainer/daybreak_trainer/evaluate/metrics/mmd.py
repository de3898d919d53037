"""Maximum mean discrepancies: distances that assume no distribution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0
_KID_DEGREE = 3
_BLOCK = 2048
"""Rows and columns of a kernel that are in memory at once: 32 MiB."""


def cmmd(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """CMMD of two sets of embeddings `(n, features)` and `(m, features)` (arXiv 2401.09603).

    1000 times the squared discrepancy under `exp(-|x - y|^2 / (2 * 10^2))` of embeddings of length
    1; means are over all pairs, each with itself too, as the paper's code takes them.
    """
    x, y = _normalised(one), _normalised(other)
    within = _mean(_gaussian, x, x) + _mean(_gaussian, y, y)
    return _CMMD_SCALE * (within - 2.0 * _mean(_gaussian, x, y))


def kid(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Kernel Inception distance (arXiv 1801.01401): unbiased, so it may lie below 0; of all images
    at once, not the mean over subsets of them.

    Raises:
        ValueError: fewer than two images in a set.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("a kernel distance without bias needs two images at least in each set")
    return _between_others(x) + _between_others(y) - 2.0 * _mean(_polynomial, x, y)


def _mean(kernel: Callable[[Array, Array], Array], x: Array, y: Array) -> float:
    """Over all pairs, block by block: the whole kernel of 50,000 images would be 20 GB."""
    total = 0.0
    for row in range(0, len(x), _BLOCK):
        for column in range(0, len(y), _BLOCK):
            total += float(kernel(x[row : row + _BLOCK], y[column : column + _BLOCK]).sum())
    return total / (len(x) * len(y))


def _gaussian(x: Array, y: Array) -> Array:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * x @ y.T
    kernel: Array = np.exp(-np.clip(squared, 0.0, None) / (2.0 * _CMMD_SIGMA**2))
    return kernel


def _polynomial(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1.0) ** _KID_DEGREE
    return kernel


def _between_others(x: Array) -> float:
    """Mean kernel over all pairs of different images."""
    count = len(x)
    own = ((x * x).sum(1) / x.shape[1] + 1.0) ** _KID_DEGREE
    return float((_mean(_polynomial, x, x) * count**2 - own.sum()) / (count * (count - 1)))


def _normalised(values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    unit: Array = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit
