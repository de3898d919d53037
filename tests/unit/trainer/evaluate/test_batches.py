"""What is in memory at once while images are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from daybreak_trainer.evaluate.batches import decoded, rows_at_once


@pytest.mark.parametrize(
    ("tokens", "rows"), [(16, 32), (256, 32), (1024, 8), (4096, 2), (16384, 1)]
)
def test_fewer_large_images_are_drawn_at_once(tokens: int, rows: int) -> None:
    """A token of one is as large as that of another; at least one image is drawn."""
    assert rows_at_once(tokens) == rows
    assert rows_at_once(tokens, most=4) == min(rows, 4)


def test_images_are_decoded_one_by_one() -> None:
    """In their order, from -1..1 to 0..255, and what lies outside is cut off."""
    seen: list[int] = []

    def decode(one: Tensor) -> Tensor:
        seen.append(len(one))
        return one.expand(1, 3, 2, 2)

    images = decoded(torch.tensor([-2.0, 0.0, 1.0]).view(3, 1, 1, 1), decode)
    assert seen == [1, 1, 1]
    assert images.shape == (3, 2, 2, 3)
    assert images[:, 0, 0, 0].tolist() == [0, 128, 255]
