"""The loader hands out what the order says, ahead of time, and fails in the step at fault."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.data.errors import ShardError
from daybreak_trainer.data.loader import Batch, Loader, StepPlan
from daybreak_trainer.data.order import global_batch, rank_slice

SIZE = 17


@dataclass(frozen=True)
class Numbered:
    image: npt.NDArray[np.uint8]
    caption: str


@dataclass
class Numbers:
    """A dataset whose samples say their index; `bad` ones are damaged, and `read` counts."""

    bad: frozenset[int] = frozenset()
    read: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __len__(self) -> int:
        return SIZE

    def get(self, index: int) -> Numbered:
        self.read.release()
        if index in self.bad:
            raise ShardError(f"sample {index} is damaged")
        return Numbered(np.full((3, 2, 2), index, dtype=np.uint8), f"number {index}")


def plans(steps: int, size: int = 5, first: int = 0) -> list[StepPlan]:
    return [StepPlan(step, step * size, size) for step in range(first, steps)]


def handed_out(
    steps: int, depth: int, rank: int = 0, world: int = 1, first: int = 0
) -> list[Batch]:
    loader = Loader(
        Numbers(), plans(steps, first=first), seed=3, rank=rank, world=world, depth=depth
    )
    try:
        return list(loader)
    finally:
        loader.close()


def _content(batches: list[Batch]) -> list[tuple[int, list[int], list[int], tuple[str, ...]]]:
    return [(b.step, b.positions.tolist(), b.indices.tolist(), b.captions) for b in batches]


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 9), steps=st.integers(0, 8), first=st.integers(0, 4))
def test_any_look_ahead_hands_out_the_same(depth: int, steps: int, first: int) -> None:
    """The same batches in the same order, also where training begins in the middle."""
    assert _content(handed_out(steps, depth, first=first)) == _content(
        handed_out(steps, 1)[min(first, steps) :]
    )


@settings(max_examples=25, deadline=None)
@given(world=st.integers(1, 5), steps=st.integers(1, 5))
def test_the_ranks_parts_are_the_global_batch(world: int, steps: int) -> None:
    """Each sample once, image, caption and index of one sample together."""
    parts = [handed_out(steps, 4, rank, world) for rank in range(world)]
    for step in range(steps):
        batches = [part[step] for part in parts]
        indices = np.concatenate([batch.indices for batch in batches])
        assert indices.tolist() == global_batch(3, SIZE, step * 5, 5).tolist()
        for rank, batch in enumerate(batches):
            part = rank_slice(5, rank, world)
            assert batch.positions.tolist() == list(
                range(step * 5 + part.start, step * 5 + part.stop)
            )
            assert batch.global_size == 5
            assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()
            assert list(batch.captions) == [f"number {index}" for index in batch.indices]


@pytest.mark.parametrize("depth", [1, 8])
def test_damage_surfaces_in_the_step_that_needs_it(depth: int) -> None:
    """The steps before it are handed out, however far ahead the loader read; the error is the
    dataset's own, and nothing comes after it."""
    at_fault = 3
    bad = int(global_batch(3, SIZE, at_fault * 5, 5)[0])
    before = {int(i) for step in range(at_fault) for i in global_batch(3, SIZE, step * 5, 5)}
    assert bad not in before
    loader = Loader(Numbers(frozenset({bad})), plans(9), seed=3, rank=0, world=1, depth=depth)
    seen: list[int] = []
    with pytest.raises(ShardError, match=f"sample {bad} is damaged"):
        seen.extend(batch.step for batch in loader)
    assert seen == list(range(at_fault))
    loader.close()


def test_a_plan_that_cannot_be_is_the_trainers_error() -> None:
    """What the plans raise surfaces too, and does not end the run as if it were complete."""

    def broken() -> object:
        yield StepPlan(0, 0, 5)
        raise ValueError("no such step")

    loader = Loader(Numbers(), broken(), seed=3, rank=0, world=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such step"):
        list(loader)
    loader.close()


def test_closing_ends_the_thread() -> None:
    """In the middle of a run whose batches nobody takes, and again without harm."""
    source = Numbers()
    loader = Loader(source, plans(1000), seed=3, rank=0, world=1, depth=2)
    (thread,) = (t for t in threading.enumerate() if t.name == "loader")
    for _ in range(3 * 5):
        assert source.read.acquire(timeout=10)
    loader.close()
    assert not thread.is_alive()
    loader.close()


def test_it_reads_no_further_ahead_than_its_depth() -> None:
    """Two batches wait and one is in hand: a day's dataset does not pile up in memory."""
    source = Numbers()
    loader = Loader(source, plans(1000), seed=3, rank=0, world=1, depth=2)
    for _ in range(3 * 5):
        assert source.read.acquire(timeout=10)
    assert not source.read.acquire(timeout=0.3)
    loader.close()


def test_ranks_beyond_the_batch_have_no_samples_of_their_own() -> None:
    """Seven ranks share five samples: each is somebody's own once, and the ranks without one have
    something to compute that counts for nothing."""
    parts = [handed_out(2, depth=1, rank=rank, world=7) for rank in range(7)]
    for step in range(2):
        batches = [part[step] for part in parts]
        own = [int(i) for batch in batches for i in batch.indices[: batch.own]]
        assert own == global_batch(3, SIZE, step * 5, 5).tolist()
        assert sorted(batch.own for batch in batches) == [0, 0, 1, 1, 1, 1, 1]
        assert all(len(batch.images) == 1 for batch in batches)
