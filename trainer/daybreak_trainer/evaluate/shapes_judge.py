"""The judge of shapes: finds the coloured objects of an image and compares them with a scene.

A pixel belongs to the colour whose direction in RGB it has, where it is bright enough, or to none
of them; connected pixels of one colour are an object; its shape is the one whose rendering into the
same bounding box overlaps it most. What has no colour, shape or size of ours is an object all the
same: nobody asked for it, so it spoils the image.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from daybreak_trainer.prepare.shapes import (
    COLOURS,
    SHAPES,
    Placed,
    Scene,
    draw_shape,
    relation_holds,
)

_PRESENT = 0.5
"""A pixel shows an object where it has at least this share of the object's brightness."""
_SAME_COLOUR = 0.96
"""Cosine of the angle in RGB within which a pixel has a colour; white and grey are further off."""
_SMALLEST_AREA = 0.015
"""Of the image; smaller specks are noise, the smallest real triangle covers 0.04."""
_MIN_OVERLAP = 0.6
"""Intersection over union with the best template; below it, the thing has no shape of ours."""
_LARGEST_SIDE = 0.6
"""Of the image; real things reach 0.4, a colour that fills the image is no thing."""
_MIN_ASPECT = 0.7
"""Shorter over longer side of the bounding box; real things have 1, give or take a pixel."""
_SUPERSAMPLING = 8


@dataclass(frozen=True)
class Found:
    """An object in an image; `place` in units of the image's side. None: not one of ours."""

    colour: str | None
    shape: str | None
    place: Placed


def shows(image: npt.NDArray[np.uint8], scene: Scene, tag: str) -> bool:
    """Whether an image `(height, width, 3)` shows the scene, as far as the tag asks.

    The number of objects must always be right. `single_object`, `two_object` and `counting` ask
    for shapes; `colors` and `color_attribution` for each shape in its colour; `position` for that
    and the relation.
    """
    found = find(image)
    wanted = [(thing.colour, thing.shape) for thing in scene.things]
    if tag in ("single_object", "two_object", "counting"):
        return Counter(f.shape for f in found) == Counter(shape for _, shape in wanted)
    if Counter((f.colour, f.shape) for f in found) != Counter(wanted):
        return False
    if scene.relation is None:
        return True
    places = {(f.colour, f.shape): f.place for f in found}
    return relation_holds(scene.relation, places[wanted[0]], places[wanted[1]])


def find(image: npt.NDArray[np.uint8]) -> list[Found]:
    """All objects of an image."""
    from scipy import ndimage

    pixels = image.astype(np.float64)
    names: list[str | None] = [*COLOURS, None]
    palette = np.array(list(COLOURS.values()), dtype=np.float64)
    strengths = np.linalg.norm(palette, axis=1)
    length = np.linalg.norm(pixels, axis=2)
    likeness = pixels @ (palette / strengths[:, None]).T
    nearest = likeness.argmax(axis=2)
    present = length >= _PRESENT * strengths[nearest]
    nearest[likeness.max(axis=2) < _SAME_COLOUR * length] = len(COLOURS)
    found = []
    for number, colour in enumerate(names):
        labels, count = ndimage.label(present & (nearest == number))
        for label in range(1, count + 1):
            mask = labels == label
            if mask.mean() >= _SMALLEST_AREA:
                found.append(_object(colour, mask))
    return found


def _object(colour: str | None, mask: npt.NDArray[np.bool_]) -> Found:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = mask[top:bottom, left:right]
    overlaps = {
        shape: float((cut & template).sum() / (cut | template).sum())
        for shape, template in _templates(*cut.shape).items()
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    side = mask.shape[0]
    ours = (
        overlaps[best] >= _MIN_OVERLAP
        and max(cut.shape) <= _LARGEST_SIDE * side
        and min(cut.shape) >= _MIN_ASPECT * max(cut.shape)
    )
    place = Placed((left + right) / 2 / side, (top + bottom) / 2 / side, (right - left) / side)
    return Found(colour, best if ours else None, place)


@lru_cache(maxsize=1024)
def _templates(height: int, width: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Each shape filling a box of this size, as the renderer draws it."""
    scale = _SUPERSAMPLING
    templates = {}
    for shape in SHAPES:
        image = Image.new("L", (width * scale, height * scale), 0)
        box = (0, 0, width * scale - 1, height * scale - 1)
        draw_shape(ImageDraw.Draw(image), shape, box, 255)
        small = image.resize((width, height), Image.Resampling.BOX)
        templates[shape] = np.asarray(small) >= 255 * _PRESENT
    return templates
