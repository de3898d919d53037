"""Aspect-ratio buckets: images keep about their shape, and a batch is of one shape.

As in NovelAI's "aspect ratio bucketing" and SDXL (arXiv:2307.01952, section 2.3): every bucket has
about as many pixels as the square, so a step costs about the same whatever its bucket.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image

from daybreak_trainer.data.card import bucket_name
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare.folder import Captioned
from daybreak_trainer.prepare.unreadable import Unreadable, UnreadableImageError, decoded

_LONGEST = 2.0
"""Most of the long side over the short one."""
_SIDES = 16
"""The square's side in steps of a bucket's sides, where these stay multiples of 8."""
_ROTATED = (5, 6, 7, 8)
_ORIENTATION = 0x0112
Size = tuple[int, int]
"""Height and width in pixels."""


def sizes(resolution: int, multiple: int = 8) -> list[Size]:
    """The buckets of a resolution, from the tallest to the widest: area at most `resolution`², at
    most 2:1, both sides multiples of a sixteenth of `resolution` rounded down to a multiple of
    `multiple`.

    Raises:
        DatasetError: `resolution` is no multiple of that.
    """
    step = max(resolution // _SIDES // multiple, 1) * multiple
    if resolution % step:
        raise DatasetError(f"--resolution {resolution}: buckets need a multiple of {step} pixels")
    found = set()
    for short in range(step, resolution + 1, step):
        long = resolution * resolution // short // step * step
        if long <= _LONGEST * short:
            found |= {(short, long), (long, short)}
    return sorted(found, reverse=True)


def nearest(size: Size, buckets: list[Size]) -> Size:
    """The bucket into which an image of this size fits with the least cut away."""

    def ratio(of: Size) -> float:
        return math.log(of[0] / of[1])

    return min(buckets, key=lambda bucket: abs(ratio(bucket) - ratio(size)))


def grouped(
    found: list[Captioned], resolution: int, multiple: int, unreadable: Unreadable
) -> dict[str, list[Captioned]]:
    """Images by the name of their bucket, in a fixed order; only buckets that have any, and no
    images whose size cannot be read.

    Raises:
        DatasetError: as `Unreadable.note`, `decoded` and `sizes`.
    """
    buckets = sizes(resolution, multiple)
    groups: dict[str, list[Captioned]] = {bucket_name(*bucket): [] for bucket in buckets}
    for item in found:
        try:
            size = _upright(item.file)
        except UnreadableImageError as error:
            unreadable.note(error)
            continue
        groups[bucket_name(*nearest(size, buckets))].append(item)
    return {name: members for name, members in groups.items() if members}


def _upright(file: Path) -> Size:
    """An image's size as it is shown, from its header alone."""

    def read(opened: Image.Image) -> Size:
        width, height = opened.size
        rotated = opened.getexif().get(_ORIENTATION) in _ROTATED
        return (width, height) if rotated else (height, width)

    return decoded(file, read)
