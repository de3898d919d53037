"""Reads the samples that are held out of training; each rank reads its part, and keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.errors import DataUnavailableError
from daybreak_trainer.data.holdout import HeldOut, Indices
from daybreak_trainer.data.index import CAPTION
from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.data.shards import Shards


@dataclass(frozen=True, eq=False)
class ValidationBatch:
    """A rank's part of the validation samples of one bucket; every rank has one of each bucket."""

    numbers: Indices
    """In the whole validation set, `(local,)`."""
    tensors: Mapping[str, Tensor]
    """As a training batch has them, `(local, ...)`, on the host."""
    captions: tuple[str, ...]
    own: int
    """How many of these samples count: all, or none where there are more ranks than samples and
    another's sample stands in, for every rank takes part in every collective."""
    rows: int
    """Samples of the rank that has most: every rank computes so many."""
    total: int
    """Of all ranks."""
    bucket: tuple[int, int]
    """Height and width in pixels."""


def read_validation(
    corpus: Corpus,
    shards: Shards,
    rank: int,
    world: int,
    read: Callable[[int], None],
    caption: str = CAPTION,
) -> tuple[ValidationBatch, ...]:
    """This rank's part of all validation samples, with the captions of the column `caption`; `read`
    hears how many are here.

    Raises:
        ShardError, DataUnavailableError: as in training.
    """
    found: list[ValidationBatch] = []
    done = 0
    for held_out in corpus.validation:
        found.append(_read(corpus, shards, held_out, rank, world, caption))
        done += len(found[-1].numbers)
        read(done)
    return tuple(found)


def _read(
    corpus: Corpus, shards: Shards, held_out: HeldOut, rank: int, world: int, caption: str
) -> ValidationBatch:
    total = len(held_out.numbers)
    part = rank_slice(total, rank, world)
    own = part.stop - part.start
    part = part if own else slice(0, 1)
    places = list(zip(held_out.shards[part].tolist(), held_out.samples[part].tolist(), strict=True))
    stored, size = bucket_size(held_out.bucket), corpus.size(held_out.bucket)
    arrays = {
        column.name: np.empty((len(places), *(column.shape or (3, *size))), dtype=column.dtype)
        for column in corpus.buckets[held_out.bucket]
    }
    bytes_of = {
        column.name: arrays[column.name].reshape(len(places), -1).view(np.uint8)
        if column.shape is not None
        else arrays[column.name]
        for column in corpus.buckets[held_out.bucket]
    }
    captions = []
    for row, (shard, sample) in enumerate(places):
        values = {name: column[row] for name, column in bytes_of.items()}
        file = shards.get(shard)
        try:
            captions.append(file.read(sample, values, stored, caption))
        except DataUnavailableError:
            captions.append(shards.again(shard, file).read(sample, values, stored, caption))
    return ValidationBatch(
        numbers=held_out.numbers[part],
        tensors={name: torch.from_numpy(array) for name, array in arrays.items()},
        captions=tuple(captions),
        own=own,
        rows=-(-total // world),
        total=total,
        bucket=size,
    )
