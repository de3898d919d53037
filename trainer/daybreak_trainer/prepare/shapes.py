"""Scenes of one to three coloured shapes, and what is held out of them.

A scene is a structure (one object, two objects, a count, a relation) filled with colours and
shapes. A fixed fifth of the single things, of the counts and of the pairs is held out, a pair in
every order and every relation: no picture of the training set answers a held-out prompt, whatever
caption it carries. Evaluation asks for nothing else. Every colour, shape, count and relation by
itself is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (232, 58, 50),
    "green": (64, 196, 84),
    "blue": (66, 112, 240),
    "yellow": (244, 214, 52),
    "purple": (196, 76, 224),
}
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three"}
BACKGROUND = (16, 16, 24)
SHORT_CAPTION = "caption_short"
"""The column of `Scene.short_caption`."""

Structure = Literal["single", "pair", "count", "relation"]
_SHARES: dict[Structure, float] = {"single": 0.2, "pair": 0.25, "count": 0.25, "relation": 0.3}
_HELD_OUT_SHARE = 0.2
_SUPERSAMPLING = 8
# In units of the image's side.
_DIAMETERS = (0.28, 0.40)
_GAP = 0.05
_PLAIN = 0.06
"""How much clearer than necessary a drawn relation is: 2 px of 32, so no verdict hangs on one."""


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What an image is to show. `things` has one entry an object; a relation holds between the
    first and the second."""

    structure: Structure
    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        first = self.things[0]
        if self.structure == "count":
            return f"{COUNTS[len(self.things)]} {first.colour} {first.shape}s"
        names = [f"a {thing.colour} {thing.shape}" for thing in self.things]
        return f" {self.relation or 'and'} ".join(names)

    @property
    def short_caption(self) -> str:
        """What is there, without how many and where, in words of the caption."""
        kinds = dict.fromkeys(f"{thing.colour} {thing.shape}" for thing in self.things)
        return " and ".join(kinds)

    @property
    def held_out(self) -> bool:
        """Whether training must not see it."""
        return self.combination in _held_out_combinations()

    @property
    def combination(self) -> str:
        """Names the things shown, in any order and relation: "a left of b" is a picture of "b right
        of a" and of "a and b" too."""
        return " + ".join(sorted(f"{thing.colour} {thing.shape}" for thing in self.things))


@dataclass(frozen=True)
class Placed:
    """An object's place: centre and diameter in units of the image's side."""

    x: float
    y: float
    diameter: float


def all_scenes(structure: Structure) -> list[Scene]:
    """Every filling of a structure."""
    things = [Thing(colour, shape) for colour, shape in product(COLOURS, SHAPES)]
    if structure == "single":
        return [Scene("single", (thing,)) for thing in things]
    if structure == "count":
        return [Scene("count", (thing,) * count) for count in COUNTS for thing in things]
    pairs = [(a, b) for a, b in product(things, things) if a != b]
    if structure == "pair":
        return [Scene("pair", pair) for pair in pairs]
    return [Scene("relation", pair, relation) for relation in RELATIONS for pair in pairs]


@cache
def _held_out_combinations() -> frozenset[str]:
    """The share of each structure whose hashes are lowest: the same on every machine, for ever."""
    chosen: set[str] = set()
    for structure in ("single", "count", "pair"):
        keys = {scene.combination for scene in all_scenes(structure)}
        ranked = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
        chosen.update(ranked[: round(len(ranked) * _HELD_OUT_SHARE)])
    return frozenset(chosen)


def training_scenes(count: int, seed: int) -> Iterator[tuple[Scene, int]]:
    """`count` scenes that are not held out, each with the seed of its layout."""
    generator = np.random.default_rng([seed, 0])
    allowed = {s: [scene for scene in all_scenes(s) if not scene.held_out] for s in _SHARES}
    structures, shares = list(_SHARES), list(_SHARES.values())
    for number in range(count):
        choices = allowed[structures[generator.choice(len(structures), p=shares)]]
        yield choices[generator.integers(len(choices))], number


def layout(scene: Scene, generator: np.random.Generator) -> list[Placed]:
    """Random places in which nothing touches and a relation is plain to see."""
    while True:
        placed = [_place(generator) for _ in scene.things]
        apart = all(_apart(a, b) for i, a in enumerate(placed) for b in placed[:i])
        if apart and (
            scene.relation is None or relation_holds(scene.relation, placed[0], placed[1], _PLAIN)
        ):
            return placed


def _place(generator: np.random.Generator) -> Placed:
    diameter = generator.uniform(*_DIAMETERS)
    low, high = diameter / 2 + _GAP / 2, 1 - diameter / 2 - _GAP / 2
    return Placed(generator.uniform(low, high), generator.uniform(low, high), diameter)


def _apart(a: Placed, b: Placed) -> bool:
    room = (a.diameter + b.diameter) / 2 + _GAP
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= room


def relation_holds(relation: str, a: Placed, b: Placed, margin: float = 0.0) -> bool:
    """Whether `a` is e.g. left of `b`: further along that axis than across it, by the margin."""
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    return along > abs(across) + margin and along > 0.2 + margin


def render(scene: Scene, resolution: int, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """An image of the scene, `(resolution, resolution, 3)`."""
    side = resolution * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for thing, place in zip(scene.things, layout(scene, generator), strict=True):
        half = place.diameter / 2
        left, top = (place.x - half) * side, (place.y - half) * side
        right, bottom = (place.x + half) * side, (place.y + half) * side
        draw_shape(draw, thing.shape, (left, top, right, bottom), COLOURS[thing.colour])
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BOX))


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    box: tuple[float, float, float, float],
    fill: tuple[int, int, int] | int,
) -> None:
    """Fills a shape into its bounding box (left, top, right, bottom)."""
    left, top, right, bottom = box
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
