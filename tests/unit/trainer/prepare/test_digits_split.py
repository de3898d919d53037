"""The real digits: three parts with nothing in common."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from daybreak_trainer.prepare import digits

PARTS: dict[digits.Split, digits.Digits] = {
    part: digits.load(part) for part in ("generator", "judge", "judge-test")
}


def test_every_digit_is_in_exactly_one_part() -> None:
    """The judge is fitted and measured on images that the generator never saw. Compared by pixels:
    the set itself holds no two equal images, so an image in two parts would show."""
    images = {part: {image.tobytes() for image in data.images} for part, data in PARTS.items()}
    for one, other in itertools.combinations(images.values(), 2):
        assert not one & other
    assert sum(len(data.labels) for data in PARTS.values()) == 1797


@pytest.mark.parametrize("part", list(PARTS))
def test_parts_are_balanced(part: digits.Split) -> None:
    """Each part has every digit about equally often."""
    counts = np.bincount(PARTS[part].labels, minlength=10)
    assert counts.min() >= 0.85 * counts.max()


def test_rendering_keeps_the_digit() -> None:
    """White ink on black, three equal channels, at the asked resolution."""
    ink = PARTS["generator"].images[0]
    image = digits.render(ink, 16)
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8
    assert (image[..., 0] == image[..., 2]).all()
    blurred = image[..., 0].reshape(8, 2, 8, 2).mean(axis=(1, 3)) / 255
    assert np.corrcoef(blurred.ravel(), ink.ravel())[0, 1] > 0.97


def test_captions_name_the_digit() -> None:
    """The caption is the prompt that evaluation uses."""
    assert digits.caption(7) == "the handwritten digit seven"
