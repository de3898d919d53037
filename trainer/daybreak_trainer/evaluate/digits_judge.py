"""The judge of digits: a classifier fitted on real digits that the generator never saw."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from daybreak_trainer.prepare import digits

_SIDE = 8
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Digits drawn by a model sit less exactly; the judge is to read them all the same."""


def classify(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The digit each image shows; `(n, height, width, 3)` → `(n,)`."""
    labels: npt.NDArray[np.int64] = _fitted().predict(_features(images))
    return labels


def _features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Ink at the resolution of the real digits, `(n, 64)`, 0..1."""
    grey = images.astype(np.float64).mean(axis=3).round().astype(np.uint8)
    small = [
        np.asarray(Image.fromarray(g).resize((_SIDE, _SIDE), Image.Resampling.BOX)) for g in grey
    ]
    features: npt.NDArray[np.float64] = np.stack(small).reshape(len(small), -1) / 255.0
    return features


@cache
def _fitted() -> Any:
    from sklearn.svm import SVC

    data = digits.load("judge")
    real = np.stack([digits.render(ink, 2 * _SIDE) for ink in data.images])
    shifted = [np.roll(real, shift, axis=(1, 2)) for shift in _SHIFTS]
    features = np.concatenate([_features(images) for images in shifted])
    classifier = SVC(C=10.0, gamma="scale")
    classifier.fit(features, np.tile(data.labels, len(_SHIFTS)))
    return classifier
