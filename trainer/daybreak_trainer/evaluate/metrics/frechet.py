"""Frechet distance between two sets of features, each taken for a Gaussian (FID, arXiv 1706.08500).

`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, all in double precision. With `C = F' F` the trace of
the square root is the sum of the singular values of `F1 F2'`. So there are no complex numbers to
throw away, covariances that are singular, as with fewer images than features they are, need no
`eps I`, and then `F` has but a row an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    mean: Array
    """`(features,)`."""
    factor: Array
    """`(rows, features)`; its transpose times it is the covariance (with n - 1)."""


def statistics(features: npt.ArrayLike) -> Statistics:
    """Of features `(n, features)`.

    Raises:
        ValueError: fewer than two images have no covariance.
    """
    values = np.asarray(features, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"a Frechet distance needs two images at least, not {len(values)}")
    mean = values.mean(axis=0)
    factor = (values - mean) / np.sqrt(len(values) - 1)
    if factor.shape[0] > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return Statistics(mean, factor)


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """0 for equal statistics."""
    traces = float((one.factor**2).sum() + (other.factor**2).sum())
    trace_of_root = float(np.linalg.svd(one.factor @ other.factor.T, compute_uv=False).sum())
    shift = one.mean - other.mean
    return max(0.0, float(shift @ shift) + traces - 2.0 * trace_of_root)
