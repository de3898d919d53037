"""The order: every sample once an epoch, the same batches however a run is split or interrupted."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.cycle import Cycle
from daybreak_trainer.data.order import BLOCK, LANES, Cell, SampleOrder, rank_slice

BUCKETS = ("16x16", "8x24", "24x8")


@dataclass(frozen=True)
class Layout:
    """Samples of each shard, with the stream and the bucket it is of."""

    shards: tuple[tuple[int, str, int], ...]
    weights: tuple[float, ...]

    def order(self, seed: int = 0) -> SampleOrder:
        members: dict[tuple[int, str], list[int]] = {}
        for number, (stream, bucket, _) in enumerate(self.shards):
            members.setdefault((stream, bucket), []).append(number)
        cells = [
            Cell(stream, bucket, np.array(n), np.array([self.shards[i][2] for i in n]))
            for (stream, bucket), n in members.items()
        ]
        return SampleOrder(cells, self.weights, seed)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    streams = draw(st.integers(1, 3))
    shard = st.tuples(
        st.integers(0, streams - 1), st.sampled_from(BUCKETS), st.one_of(st.integers(1, 60))
    )
    shards = draw(st.lists(shard, min_size=1, max_size=12))
    shards += [(stream, BUCKETS[0], 5) for stream in range(streams)]
    weights = draw(st.lists(st.floats(0.05, 20), min_size=streams, max_size=streams))
    return Layout(tuple(shards), tuple(weights))


Drawn = list[tuple[int, int, int]]
"""Positions, shards and ordinals."""


def global_batch(order: SampleOrder, position: DataPosition, size: int, world: int) -> Drawn:
    """A batch put together from what each rank computes for itself."""
    found: Drawn = []
    for rank in range(world):
        slots = order.batch(position, size, rank_slice(size, rank, world))
        found += zip(
            slots.positions.tolist(), slots.shards.tolist(), slots.ordinals.tolist(), strict=True
        )
    return found


@settings(max_examples=150)
@given(
    layout=layouts(),
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=30),
    worlds=st.lists(st.integers(1, 9), min_size=30, max_size=30),
    restarts=st.sets(st.integers(0, 30)),
)
def test_any_run_sees_the_same_batches(
    layout: Layout, seed: int, sizes: list[int], worlds: list[int], restarts: set[int]
) -> None:
    """Batch sizes change between stages, ranks come and go, the process starts afresh at any step
    from what a checkpoint holds: the global batches, in their very order, are those of one rank
    that never stopped."""
    reference, order = layout.order(seed), layout.order(seed)
    position = resumed = DataPosition()
    for step, size in enumerate(sizes):
        if step in restarts:
            order = layout.order(seed)
            resumed = DataPosition.model_validate_json(resumed.to_json())
        whole = global_batch(reference, position, size, 1)
        assert global_batch(order, resumed, size, worlds[step]) == whole
        assert sorted(p for p, _, _ in whole) == list(
            range(position.samples, position.samples + size)
        )
        assert {layout.shards[shard][1] for _, shard, _ in whole} == {order.bucket(step)}
        position, resumed = reference.after(position, size), order.after(resumed, size)
    assert position == resumed
    assert position.batches == len(sizes)
    assert position.samples == sum(sizes) == sum(position.buckets.values())


@settings(max_examples=60)
@given(layout=layouts(), seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 40), min_size=1))
def test_an_epoch_is_every_sample_once(layout: Layout, seed: int, sizes: list[int]) -> None:
    """Of each stream in each bucket: when a sample comes for the n-th time, every other one of its
    stream and bucket has come n - 1 times."""
    order = layout.order(seed)
    position, step = DataPosition(), 0
    seen: dict[tuple[int, str], Counter[tuple[int, int]]] = {}
    while position.samples < 600:
        size = sizes[step % len(sizes)]
        drawn = sorted(global_batch(order, position, size, 1))  # in the order of positions
        for _, shard, ordinal in drawn:
            stream, bucket, held = layout.shards[shard]
            assert 0 <= ordinal < held
            counts = seen.setdefault((stream, bucket), Counter())
            counts[shard, ordinal] += 1
            samples = sum(s for a, b, s in layout.shards if (a, b) == (stream, bucket))
            lowest = min(counts.values()) if len(counts) == samples else 0
            assert counts[shard, ordinal] <= lowest + 1
        position, step = order.after(position, size), step + 1


@settings(max_examples=10)
@given(
    shard=st.integers(1, 900),
    samples=st.integers(BLOCK * 2, BLOCK * 80),
    size=st.integers(500, 5000),
    seed=st.integers(0, 99),
)
def test_lanes_and_blocks_hold_every_sample_once(
    shard: int, samples: int, size: int, seed: int
) -> None:
    """The same for corpora of many lanes and blocks, over two epochs, the second another order."""
    sizes = [shard] * (samples // shard) + ([samples % shard] if samples % shard else [])
    order = Layout(tuple((0, BUCKETS[0], s) for s in sizes), (1.0,)).order(seed)
    epochs = []
    position = DataPosition()
    for _ in range(2):
        parts = []
        end = position.samples + samples
        while position.samples < end:
            take = min(size, end - position.samples)
            slots = order.batch(position, take)
            parts.append(slots.shards * 1000 + slots.ordinals)
            position = order.after(position, take)
        epochs.append(np.concatenate(parts))
        assert len(epochs[-1]) == samples == len(np.unique(epochs[-1]))
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_each_node_touches_its_share_of_the_shards(nodes: int) -> None:
    """With many more shards than lanes a node downloads about its part of an epoch's bytes: not
    every shard, as it would if a batch's samples were shared out at random."""
    shards, held, size = 1000, 200, 1024
    layout = Layout(tuple((0, BUCKETS[0], held) for _ in range(shards)), (1.0,))
    order = layout.order()
    touched: list[set[int]] = [set() for _ in range(nodes)]
    position = DataPosition()
    while position.samples + size <= shards * held:
        for node in range(nodes):
            slots = order.batch(position, size, rank_slice(size, node, nodes))
            touched[node].update(slots.shards.tolist())
        position = order.after(position, size)
    share = shards / nodes
    assert all(share * 0.9 < len(node) < share * 1.25 for node in touched)


def test_a_rank_works_on_few_shards_at_a_time() -> None:
    """What lies between two uses of a shard is bounded by its block, not by the epoch: a cache of
    the shards of a few blocks is enough."""
    layout = Layout(tuple((0, BUCKETS[0], 256) for _ in range(1000)), (1.0,))
    order = layout.order()
    spans: dict[int, list[int]] = {}
    position = DataPosition()
    for step in range(1000 * 256 // 1024):  # one epoch
        for shard in order.batch(position, 1024).shards.tolist():
            spans.setdefault(shard, [step, step])[1] = step
        position = order.after(position, 1024)
    # A block is at most 3,071 samples of a lane, a step takes 32 from each; a shard may lie in two.
    long = [last - first for first, last in spans.values() if last - first > 2 * 3071 / 32]
    assert len(long) < LANES  # a shard that two lanes share comes late in one, early in the other


@settings(max_examples=100)
@given(shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=8), end=st.integers(0, 20_000))
def test_every_prefix_has_its_shares(shares: list[float], end: int) -> None:
    """Nobody runs ahead or is left behind by more than a few numbers, wherever one stops, and a
    member's numbers count up without a gap."""
    cycle = Cycle(shares, (0,))
    members, nth = cycle.at(np.arange(end))
    for member, share in enumerate(shares):
        mine = nth[members == member]
        assert mine.tolist() == list(range(len(mine)))
        rounding = end / cycle.period  # a share is a whole number of the period
        assert abs(len(mine) - end * share / sum(shares)) <= len(shares) + 1 + rounding


def test_streams_are_drawn_by_weight() -> None:
    """Three samples of the second stream for one of the first, though it has fewer: its epochs are
    shorter."""
    layout = Layout(((0, BUCKETS[0], 3000), (1, BUCKETS[0], 100)), (1.0, 3.0))
    order = layout.order()
    drawn: Counter[int] = Counter()
    position = DataPosition()
    for _ in range(100):
        drawn.update(layout.shards[s][0] for s in order.batch(position, 40).shards.tolist())
        position = order.after(position, 40)
    assert drawn[0] == pytest.approx(1000, abs=3)
    assert drawn[1] == pytest.approx(3000, abs=3)


def test_buckets_come_as_often_as_they_have_samples() -> None:
    """So that the epochs of all buckets end at about the same time; a bucket of few samples is not
    left out."""
    layout = Layout(((0, "16x16", 6000), (0, "8x24", 3990), (0, "24x8", 10)), (1.0,))
    order = layout.order()
    turns = Counter(order.bucket(batch) for batch in range(10_000))
    assert turns["16x16"] == pytest.approx(6000, rel=0.01)
    assert turns["8x24"] == pytest.approx(3990, rel=0.01)
    assert turns["24x8"] == pytest.approx(10, abs=2)


def test_small_datasets_are_shuffled_as_a_whole() -> None:
    """A dataset of one shard does not come in the order in which it was written, nor an epoch in
    the order of the one before."""
    order = Layout(((0, BUCKETS[0], 64),), (1.0,)).order()
    first = order.batch(DataPosition(), 64).ordinals.tolist()
    again = order.batch(order.after(DataPosition(), 64), 64).ordinals.tolist()
    assert sorted(first) == sorted(again) == list(range(64))
    assert first != sorted(first)
    assert again not in (first, sorted(first))


def test_fifty_million_samples_are_planned_at_once() -> None:
    """A resume does not wait for a plan of the epoch; it takes 10 s in mosaicml-streaming."""
    sizes = np.full(200_000, 250)
    started = time.perf_counter()
    order = SampleOrder([Cell(0, "16x16", np.arange(len(sizes)), sizes)], [1.0], 0)
    slots = order.batch(DataPosition(samples=30_000_000, batches=1), 2048)
    assert len(slots.shards) == 2048
    assert time.perf_counter() - started < 1.0


def test_a_position_without_buckets_is_of_a_corpus_with_one() -> None:
    """What a checkpoint says of samples alone is enough where there is one bucket."""
    order = Layout(((0, BUCKETS[0], 500),), (1.0,)).order()
    detailed = DataPosition(samples=130, batches=3, buckets={BUCKETS[0]: 130})
    plain = DataPosition(samples=130, batches=3)
    assert order.batch(plain, 50).ordinals.tolist() == order.batch(detailed, 50).ordinals.tolist()
    assert order.after(plain, 50) == order.after(detailed, 50)


def test_nothing_to_draw_from_is_refused() -> None:
    """No endless loop over nothing, and no weight that means never."""
    with pytest.raises(ValueError, match="at least one sample"):
        SampleOrder([], [1.0], 0)
    with pytest.raises(ValueError, match="positive"):
        Layout(((0, BUCKETS[0], 5), (1, BUCKETS[0], 5)), (1.0, 0.0)).order()
