"""The 1,797 handwritten digits that scikit-learn ships (UCI, 8 × 8 px, CC BY 4.0).

Split once and for ever: what the generator trains on, what the judge is fitted on, and what the
judge itself is measured on have no image in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Split = Literal["generator", "judge", "judge-test"]
_GENERATOR_SHARE, _JUDGE_SHARE = 0.5, 0.4
_SPLIT_SEED = 1797


@dataclass(frozen=True)
class Digits:
    images: npt.NDArray[np.float64]
    """`(n, 8, 8)`, ink from 0 to 1."""
    labels: npt.NDArray[np.int64]
    """`(n,)`, 0 to 9."""


def load(split: Split) -> Digits:
    """One of the three disjoint parts, stratified by digit."""
    from sklearn.datasets import load_digits

    data = load_digits()
    generator = np.random.default_rng(_SPLIT_SEED)
    chosen = []
    for digit in range(10):
        members = generator.permutation(np.flatnonzero(data.target == digit))
        first = round(len(members) * _GENERATOR_SHARE)
        second = first + round(len(members) * _JUDGE_SHARE)
        parts = {
            "generator": members[:first],
            "judge": members[first:second],
            "judge-test": members[second:],
        }
        chosen.append(parts[split])
    rows = np.sort(np.concatenate(chosen))
    return Digits(data.images[rows] / 16.0, data.target[rows].astype(np.int64))


def caption(label: int) -> str:
    return f"the handwritten digit {WORDS[label]}"


def render(ink: npt.NDArray[np.float64], resolution: int) -> npt.NDArray[np.uint8]:
    """White ink on black, `(resolution, resolution, 3)`, from `(8, 8)`."""
    small = Image.fromarray((ink * 255).round().astype(np.uint8))
    large = small.resize((resolution, resolution), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(large)[:, :, None], 3, axis=2)
