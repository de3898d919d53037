"""Trains a recipe on `shapes` for so many seconds of steps, and says what came of it.

The model, the step, the optimizers and the average are the trainer's own, on two ranks of one
thread each over gloo; pictures and captions lie in memory. Stages and cooldown go by a clock that
counts steps alone, not start-up or judging, and leaves out what a rank was kept waiting for a core
by other programs (`schedstat`). So arms are compared at equal time, whatever a step of theirs costs
and whatever else runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from common.engine import Engine
from torch import Tensor

from daybreak_trainer.allocator import keep_freed_memory
from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.evaluate.sampler import sample
from daybreak_trainer.evaluate.score import evaluate_images, heldout_prompts
from daybreak_trainer.export import pipeline as export
from daybreak_trainer.models import text_to_image
from daybreak_trainer.objectives.validation import dense_losses
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.prepare import shapes
from daybreak_trainer.recipe import Recipe

RANKS = 2
SAMPLES = 60_000
_SAMPLING_SEED, _NOISE_SEED, _LAYOUT_SEED = 20_000, 9, 11
_TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
_VALIDATED = 240
_SPEED_STEPS = 50
_SCHEDSTAT = Path("/proc/thread-self/schedstat")
"""Nanoseconds on a core, and waiting for one."""


@dataclass(frozen=True)
class Outcome:
    alignment: float
    alignment_by_tag: dict[str, float]
    validation_loss: float
    """Velocity loss of all held-out kinds of scenes, at fixed timesteps and noise."""
    images_per_second: float
    steps: int
    samples: int


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures `(n, 3, side, side)` uint8 and their captions."""

    images: npt.NDArray[np.uint8]
    captions: Sequence[str]


def rendered(folder: Path, resolution: int) -> Path:
    """A file with the training pictures of this resolution; drawn once."""
    path = folder / f"shapes-{resolution}-{SAMPLES}.npy"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.empty((SAMPLES, 3, resolution, resolution), dtype=np.uint8)
    for scene, number in shapes.training_scenes(SAMPLES, 0):
        picture = shapes.render(scene, resolution, np.random.default_rng([0, 1, number]))
        drawn[number] = picture.transpose(2, 0, 1)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, drawn)
    partial.rename(path)
    return path


def train(
    number: int, port: int, recipe: Recipe, pictures: dict[int, Path], seconds: float, results: Any
) -> None:
    """Rank `number` of a cell; rank 0 puts an `Outcome` into the queue `results`."""
    torch.set_num_threads(1)
    keep_freed_memory()
    store = dist.TCPStore("127.0.0.1", port, RANKS, is_master=number == 0)
    dist.init_process_group("gloo", store=store, rank=number, world_size=RANKS)
    try:
        outcome = _Cell(recipe, Rank(number, RANKS, torch.device("cpu")), pictures).run(seconds)
        if number == 0:
            results.put(outcome)
        dist.barrier()
    finally:
        dist.destroy_process_group()


class _OwnTime:
    """Wall time less what a rank waited for a core; the same on all ranks."""

    def __init__(self) -> None:
        self._last = self._now()

    def lap(self) -> float:
        """Seconds since the last call. Ranks wait for the one that waited longest, so its time is
        the step's."""
        now = self._now()
        own = torch.tensor(now - self._last, dtype=torch.float64)
        self._last = now
        dist.all_reduce(own, dist.ReduceOp.MIN)
        return float(own)

    @staticmethod
    def _now() -> float:
        waited = int(_SCHEDSTAT.read_text().split()[1]) / 1e9
        return time.perf_counter() - waited


class _Cell:
    def __init__(self, recipe: Recipe, rank: Rank, pictures: dict[int, Path]) -> None:
        self.recipe, self.rank = recipe, rank
        captions = [scene.caption for scene, _ in shapes.training_scenes(SAMPLES, 0)]
        self.scenes = {
            side: Scenes(np.load(path, mmap_mode="r"), captions) for side, path in pictures.items()
        }
        self.vocabulary = Counter(word for caption in captions for word in caption.split())
        self.engine = Engine(recipe, rank, ComputeSettings(), vocabulary=self.vocabulary)

    def run(self, seconds: float) -> Outcome:
        times, samples = self._trained(seconds)
        # A median of rates: what a busy machine does to a few steps is not the arm's doing.
        last = self.recipe.stages[-1].batch_size
        rate = last / float(np.median(times[-_SPEED_STEPS:]))
        weights = dict(export.Gathered(self.engine.ema.shadow))
        loss, (alignment, by_tag) = self._validated(weights), self._judged(weights)
        return Outcome(alignment, by_tag, loss, rate, len(times), samples)

    def _trained(self, seconds: float) -> tuple[list[float], int]:
        """Seconds of each step, and the samples seen."""
        spent, stage, entered, drawn = 0.0, -1, 0, 0
        times: list[float] = []
        order = _epochs(self.recipe.seed)
        clock = _OwnTime()
        while spent < seconds:
            done = spent / seconds
            if (now := self._stage_at(done)) != stage:
                stage, entered = now, len(times)
                self.engine.step.enter(stage)
            size = self.recipe.stages[stage].batch_size
            batch = self._batch(len(times), drawn, size, stage, order)
            self.engine.step.run(batch, self._rate(done, len(times), stage, entered))
            drawn += size
            times.append(clock.lap())
            spent += times[-1]
        return times, drawn

    def _batch(self, step: int, drawn: int, size: int, stage: int, order: Iterator[int]) -> Batch:
        numbers = np.array([next(order) for _ in range(size)], dtype=np.int64)
        mine = rank_slice(size, self.rank.rank, self.rank.world)
        side = self.recipe.stages[stage].resolution
        scenes = self.scenes[side]
        own = numbers[mine]
        return Batch(
            step=step,
            positions=np.arange(drawn, drawn + size, dtype=np.int64)[mine],
            indices=own,
            tensors={"image": torch.from_numpy(scenes.images[own])},
            captions=tuple(scenes.captions[number] for number in own),
            global_size=size,
            own=len(own),
            bucket=(side, side),
            after=DataPosition(samples=drawn + size),
        )

    def _stage_at(self, done: float) -> int:
        end = 0.0
        for number, stage in enumerate(self.recipe.stages):
            end += stage.share or 1.0
            if done < end:
                return number
        return len(self.recipe.stages) - 1

    def _rate(self, done: float, step: int, stage: int, entered: int) -> float:
        """Learning rate: warm-ups by steps, the cooldown by the clock."""
        schedule, now = self.recipe.schedule, self.recipe.stages[stage]
        factor = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
        if now.warmup_steps:
            factor *= min(1.0, (step - entered + 1) / now.warmup_steps)
        into = done - (1.0 - schedule.cooldown_share)
        if into > 0.0:
            factor *= 1.0 - sqrt(into / schedule.cooldown_share)
        return self.recipe.optimizer.learning_rate * now.learning_rate_factor * factor

    # --- what came of it ------------------------------------------------------------------------

    def _validated(self, weights: dict[str, Tensor]) -> float:
        model, text = text_to_image.build(self.recipe, self.vocabulary)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        batch = _held_out(self.recipe.stages[-1].resolution, self.rank)
        losses = dense_losses(
            model.eval(),
            text,
            self.recipe.objective,
            batch,
            _TIMESTEPS,
            _NOISE_SEED,
            torch.float32,
        )
        mean = losses.mean()
        dist.all_reduce(mean)
        return float(mean) / self.rank.world

    def _judged(self, weights: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
        pipeline: Any = export.build_pipeline(self.recipe, weights, self.engine.text)
        prompts = heldout_prompts("shapes")
        mine = list(range(len(prompts)))[self.rank.rank :: self.rank.world]
        part = sample(
            pipeline,
            [prompts[number].prompt for number in mine],
            steps=self.recipe.sampling.steps,
            guidance=self.recipe.sampling.guidance,
            seed=_SAMPLING_SEED,
            numbers=mine,
        )
        parts: list[Any] = [None] * self.rank.world
        dist.all_gather_object(parts, part)
        images = np.empty((len(prompts), *part.shape[1:]), dtype=np.uint8)
        for number, drawn in enumerate(parts):
            images[number :: self.rank.world] = drawn
        score = evaluate_images("shapes", images, prompts)
        return score.alignment, score.alignment_by_tag


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """A rank's part of the scenes that training never saw."""

    positions: npt.NDArray[np.int64]
    clean: Tensor
    captions: Sequence[str]


def _held_out(resolution: int, rank: Rank) -> _HeldOut:
    """Of every structure equally many, each in a layout of its own."""
    numbers = np.arange(_VALIDATED)[rank.rank :: rank.world]
    structures = list(dict.fromkeys(scene.structure for scene in _all_held_out()))
    scenes = []
    for number in numbers:
        kind = structures[number % len(structures)]
        choices = [scene for scene in _all_held_out() if scene.structure == kind]
        scenes.append(choices[number // len(structures) % len(choices)])
    pictures = [
        shapes.render(scene, resolution, np.random.default_rng([_LAYOUT_SEED, int(number)]))
        for scene, number in zip(scenes, numbers, strict=True)
    ]
    clean = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return _HeldOut(numbers, clean, [scene.caption for scene in scenes])


@cache
def _all_held_out() -> tuple[shapes.Scene, ...]:
    kinds: tuple[shapes.Structure, ...] = ("single", "pair", "count", "relation")
    return tuple(scene for kind in kinds for scene in shapes.all_scenes(kind) if scene.held_out)


def _epochs(seed: int) -> Iterator[int]:
    """Numbers of samples, each once an epoch, the same on every rank."""
    for epoch in count():
        yield from np.random.default_rng([seed, epoch]).permutation(SAMPLES).tolist()
