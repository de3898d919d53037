"""The benchmark as a whole: its prompts, its score, and the picture of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daybreak_trainer.evaluate.grid import save_grid
from daybreak_trainer.evaluate.score import (
    SHAPES_TAGS,
    Benchmark,
    HeldOutPrompt,
    evaluate_images,
    heldout_prompts,
    judge_accuracy,
)
from daybreak_trainer.prepare import digits, shapes

GENEVAL_TAGS = {
    "single_object", "two_object", "counting", "colors", "position", "color_attribution",
}  # fmt: skip


def answered(prompt: HeldOutPrompt, resolution: int, seed: int) -> np.ndarray:
    """A real image that shows what a prompt asks for."""
    if prompt.scene is not None:
        return shapes.render(prompt.scene, resolution, np.random.default_rng([8, seed]))
    data = digits.load("judge-test")
    return digits.render(data.images[np.flatnonzero(data.labels == prompt.digit)[0]], resolution)


def test_shapes_prompts_cover_the_tags_and_were_held_out() -> None:
    """The six tags of GenEval, equally many prompts each, every one held out of training."""
    prompts = heldout_prompts("shapes")
    tags = [prompt.tag for prompt in prompts]
    assert set(tags) == set(SHAPES_TAGS) == GENEVAL_TAGS
    assert len({tags.count(tag) for tag in GENEVAL_TAGS}) == 1
    for prompt in prompts:
        assert prompt.scene is not None
        assert prompt.scene.held_out
        assert prompt.prompt == prompt.scene.caption


def test_digit_prompts_ask_for_every_digit() -> None:
    """Ten tags, one a digit, in the words of the training captions."""
    prompts = heldout_prompts("digits")
    assert {(p.tag, p.prompt, p.digit) for p in prompts} == {
        (word, digits.caption(digit), digit) for digit, word in enumerate(digits.WORDS)
    }


@pytest.mark.parametrize("benchmark", ["shapes", "digits"])
def test_prompts_are_always_the_same(benchmark: Benchmark) -> None:
    """Scores of two runs can be compared."""
    assert heldout_prompts(benchmark) == heldout_prompts(benchmark)


@pytest.mark.parametrize(("benchmark", "resolution"), [("shapes", 32), ("digits", 16)])
def test_a_perfect_model_scores_near_one(benchmark: Benchmark, resolution: int) -> None:
    """Real images of every prompt: near 1 in every tag, and the judge's own accuracy beside it."""
    prompts = heldout_prompts(benchmark)
    images = np.stack([answered(p, resolution, number) for number, p in enumerate(prompts)])
    score = evaluate_images(benchmark, images, prompts)
    assert score.alignment >= 0.99
    assert min(score.alignment_by_tag.values()) >= 0.95
    assert score.judge_accuracy.keys() == score.alignment_by_tag.keys()
    assert len(score.verdicts) == len(prompts)


@pytest.mark.parametrize("resolution", [32, 64])
def test_the_shapes_judge_states_an_accuracy_that_counts(resolution: int) -> None:
    """What is reported beside every score: at least 0.99 in each tag."""
    assert min(judge_accuracy("shapes", resolution).values()) >= 0.99


def test_the_digits_judge_states_its_accuracy() -> None:
    """By digit, on images that it was not fitted on; 0.97 in the mean, 0.9 for the worst."""
    accuracy = judge_accuracy("digits", 16)
    assert set(accuracy) == set(digits.WORDS)
    assert np.mean(list(accuracy.values())) >= 0.97
    assert min(accuracy.values()) >= 0.9


@pytest.mark.parametrize(("benchmark", "resolution"), [("shapes", 32), ("digits", 16)])
def test_a_model_that_ignores_the_prompt_scores_low(benchmark: Benchmark, resolution: int) -> None:
    """Real images given to the wrong prompts (the next tag's) earn next to nothing."""
    prompts = heldout_prompts(benchmark)
    images = np.stack([answered(p, resolution, number) for number, p in enumerate(prompts)])
    per_tag = sum(p.tag == prompts[0].tag for p in prompts)
    score = evaluate_images(benchmark, np.roll(images, per_tag, axis=0), prompts)
    assert score.alignment <= 0.15


def test_the_score_is_the_mean_over_tags() -> None:
    """A tag with many prompts weighs no more than one with few; a tag's score is its share."""
    prompts = heldout_prompts("digits")
    ones = [p for p in prompts if p.digit == 1]
    zero = next(p for p in prompts if p.digit == 0)
    chosen = [*ones, zero]
    images = np.stack([answered(zero, 16, 0)] * len(chosen))
    score = evaluate_images("digits", images, chosen)
    assert score.alignment_by_tag == {"one": 0.0, "zero": 1.0}
    assert score.alignment == 0.5


def test_the_grid_shows_every_image_over_its_label(tmp_path: Path) -> None:
    """Each image appears enlarged with crisp pixels, in reading order; its label is written
    below it and is another picture where the label is another one."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    labels = [f"label {number} is long enough for two lines of text" for number in range(5)]
    save_grid(images, labels, tmp_path / "grid.png", columns=3)
    save_grid(images, ["", *labels[1:]], tmp_path / "other.png", columns=3)
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    other = np.asarray(Image.open(tmp_path / "other.png"))
    assert page.ndim == 3
    for image in images:
        flat = np.repeat(np.repeat(image, 32, axis=0), 32, axis=1)
        assert _contains(page, flat)
    assert (page != other).any()


def test_a_grid_of_large_images_shows_them_reduced(tmp_path: Path) -> None:
    """Stripes of one pixel become their mean, not whichever stripes a nearest neighbour hits."""
    stripes = np.zeros((1, 512, 512, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 200
    save_grid(stripes, ["stripes"], tmp_path / "grid.png", columns=1)
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.abs(page[40:100, 40:100].astype(int) - 100).max() <= 8


def _contains(page: np.ndarray, tile: np.ndarray) -> bool:
    height, width = tile.shape[:2]
    corners = np.argwhere((page == tile[0, 0]).all(axis=2))
    return any(
        np.array_equal(page[top : top + height, left : left + width], tile) for top, left in corners
    )
