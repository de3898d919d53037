"""Maximum mean discrepancies: distances that assume no distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0
_KID_DEGREE = 3


def cmmd(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """CMMD of two sets of embeddings `(n, features)` and `(m, features)` (arXiv 2401.09603).

    1000 times the squared discrepancy under `exp(-|x - y|^2 / (2 * 10^2))` of embeddings of length
    1; means are over all pairs, each with itself too, as the paper's code takes them.
    """
    x, y = _normalised(one), _normalised(other)
    within = _gaussian(x, x).mean() + _gaussian(y, y).mean()
    return float(_CMMD_SCALE * (within - 2.0 * _gaussian(x, y).mean()))


def kid(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Kernel Inception distance (arXiv 1801.01401): unbiased, so it may lie below 0; of all images
    at once, not the mean over subsets of them.

    Raises:
        ValueError: fewer than two images in a set.
    """
    x, y = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("a kernel distance without bias needs two images at least in each set")
    return float(_between_others(x) + _between_others(y) - 2.0 * _polynomial(x, y).mean())


def _gaussian(x: Array, y: Array) -> Array:
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2.0 * x @ y.T
    kernel: Array = np.exp(-np.clip(squared, 0.0, None) / (2.0 * _CMMD_SIGMA**2))
    return kernel


def _polynomial(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1.0) ** _KID_DEGREE
    return kernel


def _between_others(x: Array) -> float:
    """Mean kernel over all pairs of different images."""
    kernel = _polynomial(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _normalised(values: npt.ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64)
    unit: Array = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit
