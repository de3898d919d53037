"""How long captions are, and what text costs: known before the first step, from the captions that
the dataset's card holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daybreak_trainer.data.captions import chosen
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe.text import Text


@dataclass(frozen=True)
class CaptionLengths:
    mean: float
    """Tokens of a caption before it is cut."""
    cut_share: float
    """Captions that are longer than the recipe's tokens, 0..1."""
    padded: float
    """Tokens of a caption as it is computed with, on average."""


def lengths(
    recipe: Text,
    tower: TextTower,
    sample: Mapping[str, Sequence[str]],
    rows: int,
    seed: int,
) -> CaptionLengths | None:
    """Of the captions that `recipe` draws from `sample`, by column, in passes of `rows`; None where
    a column is not in the sample."""
    if any(not sample.get(caption.column) for caption in recipe.captions):
        return None
    size = min(len(sample[caption.column]) for caption in recipe.captions)
    columns = chosen(recipe.captions, seed, np.arange(size, dtype=np.int64))
    tokens = tower.lengths([sample[column][number] for number, column in enumerate(columns)])
    cut = [min(length, recipe.max_tokens) for length in tokens]
    return CaptionLengths(
        mean=sum(tokens) / size,
        cut_share=sum(length > recipe.max_tokens for length in tokens) / size,
        padded=tower.padding.mean(cut, rows, by_length=recipe.length_buckets),
    )
