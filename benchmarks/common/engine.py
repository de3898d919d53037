"""A rank of a run without the run: model, optimizer, average and step as `train` puts them
together, fed from memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.clean import CleanReader
from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.models import text_to_image
from daybreak_trainer.optim import build as optimizers
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.parallel.precision import compute_dtype, has_bf16
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.parallel.shard import mesh_of, shard
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.step import Phases, TrainStep

WORDS = [f"word{number}" for number in range(100)]


def batches(recipe: Recipe, number: int, size: int, device: torch.device) -> list[Batch]:
    """Global batches of one rank; images are noise, captions of full length."""
    side = recipe.stages[0].resolution
    generator = np.random.default_rng(0)
    made = []
    for step in range(number):
        positions = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        images = generator.integers(0, 256, (size, 3, side, side), dtype=np.uint8)
        words = generator.choice(WORDS, (size, recipe.text.max_tokens))
        tensors = {"image": torch.from_numpy(images).to(device)}
        captions = tuple(" ".join(row) for row in words)
        made.append(
            Batch(
                step=step,
                positions=positions,
                indices=positions,
                tensors=tensors,
                captions=captions,
                global_size=size,
                own=size,
                bucket=(side, side),
                after=DataPosition(samples=(step + 1) * size),
            )
        )
    return made


@contextmanager
def alone(device: torch.device) -> Iterator[Rank]:
    """This process as the only rank of its group."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Rank(0, 1, device)
    finally:
        dist.destroy_process_group()


class Engine:
    """`step.run(batch, learning_rate)` is what `train` calls."""

    def __init__(
        self,
        recipe: Recipe,
        rank: Rank,
        compute: ComputeSettings,
        phases: Phases | None = None,
        vocabulary: Mapping[str, int] | Iterable[str] = WORDS,
    ) -> None:
        self.recipe, self.rank, self.compute = recipe, rank, compute
        with rank.device:  # a large model is drawn in seconds there, and in minutes on a CPU
            self.model, self.text = text_to_image.build(recipe, vocabulary)
        self.dtype = compute_dtype(recipe.precision, has_bf16(rank.device))
        shard(self.model, self.model.units, mesh_of(rank, compute), self.dtype, compute)
        self.optimizers = optimizers.build(self.model, recipe.optimizer, self.dtype)
        self.ema = Ema(self.model, recipe.ema.decay)
        self.step = TrainStep(
            recipe,
            self.model,
            self.text,
            self.optimizers,
            self.ema,
            rank,
            self.dtype,
            CleanReader(recipe, None, rank.device, self.dtype),
            device_batch_size=compute.device_batch_size,
            phases=phases,
        )
