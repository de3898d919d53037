"""Which of its captions a sample is read with: a pure function of the seed and its position in the
run, so the same on any number of ranks, and drawn anew in every epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from daybreak_trainer.recipe.text import Caption
from daybreak_trainer.sample_hash import sample_hash

ONE_CAPTION = (Caption(column="caption", weight=1.0),)
_USE = b"caption"


def chosen(captions: Sequence[Caption], seed: int, positions: npt.NDArray[np.int64]) -> list[str]:
    """A column for each of `positions`, drawn by weight."""
    if len(captions) == 1:
        return [captions[0].column] * len(positions)
    ends = np.cumsum([caption.weight for caption in captions])
    uniforms = np.array([_uniform(seed, int(position)) for position in positions])
    # An end is not of its own part, and rounding must not lead behind the last.
    places = np.searchsorted(ends, uniforms * ends[-1], side="right").clip(max=len(captions) - 1)
    return [captions[place].column for place in places]


def most_drawn(captions: Sequence[Caption]) -> str:
    """The column that has most weight, of equals the first: the one that validation reads, for a
    sample must be judged with the same caption every time."""
    return max(captions, key=lambda caption: caption.weight).column


def _uniform(seed: int, position: int) -> float:
    """In 0..1, without 1."""
    return (sample_hash(seed, position, _USE) >> 11) / 2.0**53
