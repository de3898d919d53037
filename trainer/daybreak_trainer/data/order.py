"""Which samples a step sees: a pure function of the corpus, the seed and the position.

Nothing here knows ranks, workers or threads, so a run that stops and goes on at any size sees the
same global batches. The samples of one stream in one bucket are a *cell*, and each cell runs
through its own endless epochs: its shards are shuffled, laid end to end and cut into equal *lanes*,
and samples are taken from the lanes in turn. Within a lane they are shuffled in blocks of a few
thousand, so planning needs memory for blocks and not for the corpus, and a rank works on the shards
of a few blocks at a time.

A global batch is sorted by lane before its contiguous split over ranks. So a rank, and a node,
keeps to its own lanes and downloads its own part of the shards, however many there are, while the
batch as a whole stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.data.cycle import Cycle

Indices = npt.NDArray[np.int64]

LANES = 32
"""Most lanes of a cell; nodes beyond it share lanes, and download some shards twice."""
BLOCK = 1024
"""Fewest samples that are shuffled together, and in a lane. 32 lanes of such blocks mix at least
32,768 samples at any time; their shards are what a node's cache should hold."""

_SHARDS, _SAMPLES, _BUCKETS, _STREAMS = range(4)  # keeps these uses of the seed apart


@dataclass(frozen=True, eq=False)
class Cell:
    """The samples of one stream in one bucket."""

    stream: int
    bucket: str
    shards: Indices
    """Numbers of its shards in the corpus, `(shards,)`."""
    sizes: Indices
    """Samples of each that are trained on, `(shards,)`, none of them 0."""

    @property
    def samples(self) -> int:
        return int(self.sizes.sum())


@dataclass(frozen=True, eq=False)
class Slots:
    """A global batch, or a rank's part of one, in the order in which ranks share it."""

    bucket: str
    positions: Indices
    """Positions in the run, `(n,)`."""
    shards: Indices
    """Numbers of shards in the corpus, `(n,)`."""
    ordinals: Indices
    """Which of its shard's samples that are trained on, `(n,)`."""
    epochs: Indices
    """Of their stream's samples in this bucket, `(n,)`."""


class SampleOrder:
    """The order of a corpus under one seed.

    Every global batch is of one bucket. So all of a step's samples have one shape, every rank has
    as many batches and, to within one sample, as many tokens as any other: with a bucket of its
    own each rank would wait in every collective for the one with the most tokens, and an epoch
    would give the ranks unequal numbers of batches.
    """

    def __init__(
        self, cells: Sequence[Cell], weights: Sequence[float], seed: int, place: str = ""
    ) -> None:
        """`weights[s]` is the relative share of samples drawn from stream `s`. `place` goes before
        a bucket's name in positions: it keeps the corpora of one run apart.

        Raises:
            ValueError: no samples, or a weight that is not positive.
        """
        if not cells or any(cell.samples < 1 for cell in cells):
            raise ValueError("a corpus and each of its cells need at least one sample")
        self._place = place
        totals = [0] * len(weights)
        for cell in cells:
            totals[cell.stream] += cell.samples
        self.buckets = tuple(sorted({cell.bucket for cell in cells}, key=bucket_size))
        self._cells = {
            bucket: [_CellOrder(cell, seed) for cell in cells if cell.bucket == bucket]
            for bucket in self.buckets
        }
        shares = {
            bucket: [weights[o.cell.stream] * o.samples / totals[o.cell.stream] for o in orders]
            for bucket, orders in self._cells.items()
        }
        self._streams = {
            bucket: Cycle(parts, (seed, _STREAMS, *bucket_size(bucket)))
            for bucket, parts in shares.items()
        }
        self._turns = Cycle([sum(shares[b]) for b in self.buckets], (seed, _BUCKETS))

    def bucket(self, batch: int) -> str:
        """The bucket of the run's `batch`-th global batch, from 0."""
        members, _ = self._turns.at(np.array([batch]))
        return self.buckets[int(members[0])]

    def after(self, position: DataPosition, size: int) -> DataPosition:
        """Where the data stands once a global batch of `size` at `position` was handed out."""
        bucket = self.bucket(position.batches)
        return DataPosition(
            samples=position.samples + size,
            batches=position.batches + 1,
            buckets={
                **position.buckets,
                self._place + bucket: self._drawn(position, bucket) + size,
            },
        )

    def batch(self, position: DataPosition, size: int, part: slice = slice(None)) -> Slots:
        """The global batch of `size` at `position`, or the part of it that one rank computes."""
        bucket = self.bucket(position.batches)
        orders = self._cells[bucket]
        numbers = np.arange(size, dtype=np.int64) + self._drawn(position, bucket)
        members, nth = self._streams[bucket].at(numbers)
        samples = np.array([order.samples for order in orders])[members]
        lanes = np.array([order.lanes for order in orders])[members]
        by_lane = np.argsort(nth % samples % lanes * LANES // lanes, kind="stable")[part]
        members, nth = members[by_lane], nth[by_lane]
        shards, ordinals, epochs = np.empty_like(nth), np.empty_like(nth), np.empty_like(nth)
        for member, order in enumerate(orders):
            mine = members == member
            if mine.any():
                shards[mine], ordinals[mine] = order.locate(nth[mine])
                epochs[mine] = nth[mine] // order.samples
        return Slots(bucket, position.samples + by_lane, shards, ordinals, epochs)

    def _drawn(self, position: DataPosition, bucket: str) -> int:
        """Samples handed out from a bucket; a position without the detail is of one bucket."""
        return position.buckets.get(
            self._place + bucket, 0 if position.buckets else position.samples
        )


class _CellOrder:
    """The endless sequence of one cell's samples, each once in every epoch."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell = cell
        self.samples = cell.samples
        self.lanes = min(max(self.samples // BLOCK, 1), LANES)
        self._key = (seed, cell.stream, *bucket_size(cell.bucket))
        self._epoch = lru_cache(maxsize=2)(self._shuffled_shards)
        self._block = lru_cache(maxsize=2 * LANES)(self._shuffled_block)

    def locate(self, numbers: Indices) -> tuple[Indices, Indices]:
        """Shards, and ordinals in them, of the samples with these numbers in the sequence."""
        epochs, places = np.divmod(numbers, self.samples)
        shards, ordinals = np.empty_like(numbers), np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order, ends = self._epoch(int(epoch))
            laid = self._laid(int(epoch), places[here])
            rank = np.searchsorted(ends, laid, side="right")
            chosen = order[rank]
            shards[here] = self.cell.shards[chosen]
            ordinals[here] = laid - (ends[rank] - self.cell.sizes[chosen])
        return shards, ordinals

    def _laid(self, epoch: int, places: Indices) -> Indices:
        """Where these places of an epoch lie in its shards laid end to end.

        Lanes begin their blocks at staggered times, so that downloads spread over an epoch.
        """
        offsets, lane = np.divmod(places, self.lanes)
        short, longer = divmod(self.samples, self.lanes)
        starts = lane * short + np.minimum(lane, longer)
        sizes = short + (lane < longer)
        shifts = lane * BLOCK // self.lanes
        last = np.maximum((sizes - shifts) // BLOCK - 1, 0)
        block = np.clip((offsets - shifts) // BLOCK, 0, last)
        begin = np.where(block == 0, 0, shifts + block * BLOCK)
        end = np.where(block == last, sizes, shifts + (block + 1) * BLOCK)
        laid = np.empty_like(places)
        kinds, which = np.unique(lane + block * LANES, return_inverse=True)
        for kind in range(len(kinds)):
            here = np.flatnonzero(which == kind)
            one = here[0]
            shuffled = self._block(
                epoch, int(lane[one]), int(block[one]), int(end[one] - begin[one])
            )
            laid[here] = starts[here] + begin[here] + shuffled[offsets[here] - begin[here]]
        return laid

    def _shuffled_shards(self, epoch: int) -> tuple[Indices, Indices]:
        order = self._generator(_SHARDS, epoch).permutation(len(self.cell.shards))
        return order, np.cumsum(self.cell.sizes[order])

    def _shuffled_block(
        self, epoch: int, lane: int, block: int, size: int
    ) -> npt.NDArray[np.uint16]:
        generator = self._generator(_SAMPLES, epoch, lane, block)
        return generator.permutation(size).astype(np.uint16)

    def _generator(self, *use: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([_ORDER_STREAM, *self._key, *use]))


_ORDER_STREAM = 0x6F72646572  # "order": keeps this use of the seed apart from any other


def rank_slice(size: int, rank: int, world: int) -> slice:
    """The contiguous part of a global batch that one rank computes; parts differ by at most one."""
    return slice(size * rank // world, size * (rank + 1) // world)
