"""Does it follow the prompt? Held-out prompts, and the share of images that show what was asked.

The score is the mean over tags, as GenEval takes it (arXiv 2310.11513), so a tag with many prompts
weighs no more than one with few. Beside the score stands the judge's own accuracy on real images:
a verdict is worth no more than its judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from daybreak_trainer.evaluate import digits_judge, shapes_judge
from daybreak_trainer.prepare import digits, shapes

Benchmark = Literal["shapes", "digits"]
Images = npt.NDArray[np.uint8]

SHAPES_TAGS: dict[str, shapes.Structure] = {
    "single_object": "single",
    "two_object": "pair",
    "counting": "count",
    "colors": "single",
    "position": "relation",
    "color_attribution": "pair",
}
_PROMPTS_PER_TAG = {"shapes": 32, "digits": 20}
_JUDGED_REAL_IMAGES_PER_TAG = 100


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt that training never saw, and what its image must show."""

    prompt: str
    tag: str
    scene: shapes.Scene | None = None
    digit: int | None = None


@dataclass(frozen=True)
class Score:
    """Ratios in 0..1."""

    alignment: float
    alignment_by_tag: dict[str, float]
    judge_accuracy: dict[str, float]
    verdicts: tuple[bool, ...]


def heldout_prompts(benchmark: Benchmark) -> list[HeldOutPrompt]:
    """The benchmark's prompts, always the same ones, tag by tag."""
    per_tag = _PROMPTS_PER_TAG[benchmark]
    if benchmark == "digits":
        return [
            HeldOutPrompt(digits.caption(digit), digits.WORDS[digit], digit=digit)
            for digit in range(10)
            for _ in range(per_tag)
        ]
    prompts = []
    for number, (tag, structure) in enumerate(SHAPES_TAGS.items()):
        scenes = [scene for scene in shapes.all_scenes(structure) if scene.held_out]
        order = np.random.default_rng([3, number]).permutation(len(scenes))
        chosen = [scenes[order[i % len(scenes)]] for i in range(per_tag)]
        prompts += [HeldOutPrompt(scene.caption, tag, scene=scene) for scene in chosen]
    return prompts


def evaluate_images(
    benchmark: Benchmark, images: Images, prompts: Sequence[HeldOutPrompt]
) -> Score:
    """Scores one image a prompt; `images` is `(n, height, width, 3)`."""
    verdicts = _judge(benchmark, images, prompts)
    by_tag = _by_tag(prompts, verdicts)
    return Score(
        alignment=mean(by_tag),
        alignment_by_tag=by_tag,
        judge_accuracy=judge_accuracy(benchmark, images.shape[1]),
        verdicts=tuple(verdicts),
    )


def alignment_by_tag(
    benchmark: Benchmark, images: Images, prompts: Sequence[HeldOutPrompt]
) -> dict[str, float]:
    """`evaluate_images` without a look at the judge: for scores during training."""
    return _by_tag(prompts, _judge(benchmark, images, prompts))


def mean(by_tag: Mapping[str, float]) -> float:
    """Over tags, whatever their numbers of prompts."""
    return float(np.mean(list(by_tag.values())))


def judge_accuracy(benchmark: Benchmark, resolution: int) -> dict[str, float]:
    """The judge's accuracy on real images it never saw, by tag."""
    if benchmark == "digits":
        data = digits.load("judge-test")
        real = np.stack([digits.render(ink, resolution) for ink in data.images])
        prompts = [
            HeldOutPrompt(digits.caption(int(d)), digits.WORDS[d], digit=int(d))
            for d in data.labels
        ]
    else:
        prompts = [
            HeldOutPrompt(scene.caption, tag, scene=scene)
            for tag, structure in SHAPES_TAGS.items()
            for scene in _every(shapes.all_scenes(structure), _JUDGED_REAL_IMAGES_PER_TAG)
        ]
        real = np.stack(
            [
                shapes.render(p.scene, resolution, np.random.default_rng([7, number]))
                for number, p in enumerate(prompts)
                if p.scene is not None
            ]
        )
    return _by_tag(prompts, _judge(benchmark, real, prompts))


def _every(scenes: list[shapes.Scene], count: int) -> list[shapes.Scene]:
    return [scenes[(number * len(scenes)) // count] for number in range(count)]


def _judge(benchmark: Benchmark, images: Images, prompts: Sequence[HeldOutPrompt]) -> list[bool]:
    if benchmark == "digits":
        seen = digits_judge.classify(images)
        return [bool(s == p.digit) for s, p in zip(seen, prompts, strict=True)]
    return [
        p.scene is not None and shapes_judge.shows(image, p.scene, p.tag)
        for image, p in zip(images, prompts, strict=True)
    ]


def _by_tag(prompts: Sequence[HeldOutPrompt], verdicts: Sequence[bool]) -> dict[str, float]:
    grouped: dict[str, list[bool]] = defaultdict(list)
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        grouped[prompt.tag].append(verdict)
    return {tag: float(np.mean(values)) for tag, values in grouped.items()}
