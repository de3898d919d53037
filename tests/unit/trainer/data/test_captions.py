"""Which caption a sample is read with."""

from __future__ import annotations

import numpy as np

from daybreak_trainer.data.captions import chosen, most_drawn
from daybreak_trainer.recipe.text import Caption

MIX = (Caption(column="caption", weight=3.0), Caption(column="caption_short", weight=1.0))


def test_captions_are_drawn_by_weight_and_by_position_alone() -> None:
    """However a batch is dealt to ranks a position draws the same; another seed draws others, and
    another epoch, being other positions, too."""
    positions = np.arange(4000, dtype=np.int64)
    drawn = chosen(MIX, 7, positions)
    assert drawn[1000:1010] == chosen(MIX, 7, positions[1000:1010])
    assert 0.72 < drawn.count("caption") / 4000 < 0.78
    assert drawn != chosen(MIX, 8, positions)
    assert drawn[:2000] != drawn[2000:]


def test_validation_reads_the_caption_that_is_drawn_most() -> None:
    """Wherever it stands in the mix; of equals the first."""
    assert most_drawn(MIX) == most_drawn(MIX[::-1]) == "caption"
    even = [Caption(column=name, weight=1.0) for name in ("long", "caption")]
    assert most_drawn(even) == "long"
