"""What training sees of the shapes, and what it must never see."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from daybreak_trainer.prepare import shapes
from daybreak_trainer.prepare.shapes import COLOURS, COUNTS, RELATIONS, SHAPES, Scene, Thing

TRAINED = [scene for scene, _ in shapes.training_scenes(20_000, seed=0)]
STRUCTURES: tuple[shapes.Structure, ...] = ("single", "pair", "count", "relation")
HELD_OUT = [s for structure in STRUCTURES for s in shapes.all_scenes(structure) if s.held_out]


def things_named(caption: str) -> tuple[tuple[str, str], ...]:
    """The (colour, shape) pairs that a caption's words name, sorted; a count repeats its thing."""
    named = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", caption)
    numbers = {word: number for number, word in COUNTS.items()}
    return tuple(sorted(named * numbers.get(caption.split()[0], 1)))


def test_no_training_caption_is_a_held_out_prompt() -> None:
    """The words of a held-out prompt are never a training caption."""
    assert not {s.caption for s in TRAINED} & {s.caption for s in HELD_OUT}


def test_no_training_picture_answers_a_held_out_prompt() -> None:
    """The things of a held-out scene never stand together and alone in a training picture, not
    under a mirrored caption ("b right of a") nor without a relation ("a and b") either. Read from
    the captions' words, so it does not trust the generator's own rule."""
    trained = {things_named(scene.caption) for scene in TRAINED}
    held_out = {things_named(scene.caption) for scene in HELD_OUT}
    assert held_out
    assert not trained & held_out


@pytest.mark.parametrize("structure", STRUCTURES)
def test_about_a_fifth_of_every_structure_is_held_out(structure: shapes.Structure) -> None:
    """Enough to judge by, and not so much that training starves."""
    scenes = shapes.all_scenes(structure)
    assert sum(scene.held_out for scene in scenes) / len(scenes) == pytest.approx(0.2, abs=0.01)


def test_every_part_of_a_held_out_scene_is_trained_on() -> None:
    """Each colour, shape, count and relation is seen in every structure that has it, so a prompt
    asks for a new combination and never for an unknown word."""
    for structure in STRUCTURES:
        seen = [scene for scene in TRAINED if scene.structure == structure]
        assert {thing.colour for scene in seen for thing in scene.things} == set(COLOURS)
        assert {thing.shape for scene in seen for thing in scene.things} == set(SHAPES)
    assert {s.relation for s in TRAINED if s.relation} == set(RELATIONS)
    assert {len(s.things) for s in TRAINED if s.structure == "count"} == set(COUNTS)
    every_thing = {Thing(colour, shape) for colour, shape in itertools.product(COLOURS, SHAPES)}
    assert {thing for scene in TRAINED for thing in scene.things} == every_thing


def test_held_out_scenes_are_the_same_for_ever() -> None:
    """A change of the held-out set makes old scores and datasets incomparable: on purpose only."""
    singles = {scene.caption for scene in HELD_OUT if scene.structure == "single"}
    assert singles == {"a red triangle", "a green square", "a purple triangle"}


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene("single", (Thing("red", "circle"),)), "a red circle"),
        (
            Scene("pair", (Thing("red", "circle"), Thing("blue", "square"))),
            "a red circle and a blue square",
        ),
        (Scene("count", (Thing("green", "triangle"),) * 2), "two green triangles"),
        (Scene("count", (Thing("green", "triangle"),) * 3), "three green triangles"),
        (
            Scene("relation", (Thing("red", "circle"), Thing("blue", "square")), "left of"),
            "a red circle left of a blue square",
        ),
    ],
)
def test_captions_say_what_the_scene_shows(scene: Scene, caption: str) -> None:
    """Captions are plain English of a few words."""
    assert scene.caption == caption


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    """A dataset can be made again anywhere; a shorter one is the start of a longer one."""
    again = [scene for scene, _ in shapes.training_scenes(200, seed=0)]
    other = [scene for scene, _ in shapes.training_scenes(200, seed=1)]
    assert again == TRAINED[:200]
    assert other != again


@pytest.mark.parametrize("structure", STRUCTURES)
def test_things_never_touch_each_other_or_the_border(structure: shapes.Structure) -> None:
    """Objects that touch could not be told apart, by a judge or by a model."""
    generator = np.random.default_rng(0)
    scenes = shapes.all_scenes(structure)
    for scene in [scenes[i] for i in generator.integers(len(scenes), size=60)]:
        placed = shapes.layout(scene, generator)
        for place in placed:
            assert place.diameter / 2 < min(place.x, place.y, 1 - place.x, 1 - place.y)
        for a, b in itertools.combinations(placed, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.diameter + b.diameter) / 2


@pytest.mark.parametrize(
    ("relation", "holds", "mirrored"),
    [
        ("left of", (0.2, 0.5), (0.8, 0.5)),
        ("right of", (0.8, 0.5), (0.2, 0.5)),
        ("above", (0.5, 0.2), (0.5, 0.8)),
        ("below", (0.5, 0.8), (0.5, 0.2)),
    ],
)
def test_a_relation_holds_one_way_only(
    relation: str, holds: tuple[float, float], mirrored: tuple[float, float]
) -> None:
    """y points down, as in pictures; what lies across the axis is neither."""
    centre = shapes.Placed(0.5, 0.5, 0.3)
    assert shapes.relation_holds(relation, shapes.Placed(*holds, 0.3), centre)
    assert not shapes.relation_holds(relation, shapes.Placed(*mirrored, 0.3), centre)
    assert not shapes.relation_holds(relation, shapes.Placed(0.1, 0.1, 0.3), centre)
