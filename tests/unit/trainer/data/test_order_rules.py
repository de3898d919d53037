"""The order of samples is a pure function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.data.order import global_batch, rank_slice
from daybreak_trainer.data.signature import signature

SIZES = st.integers(1, 50)


@given(seed=st.integers(0, 2**32), size=SIZES, epoch=st.integers(0, 5))
def test_every_epoch_is_every_sample_once(seed: int, size: int, epoch: int) -> None:
    """A permutation, whatever the batch size."""
    assert sorted(global_batch(seed, size, epoch * size, size)) == list(range(size))


@given(seed=st.integers(0, 9), size=SIZES, start=st.integers(0, 200), batch=st.integers(0, 99))
def test_batches_are_cut_from_one_sequence(seed: int, size: int, start: int, batch: int) -> None:
    """Where a batch begins changes nothing about what is at a position."""
    whole = global_batch(seed, size, 0, start + batch)
    assert global_batch(seed, size, start, batch).tolist() == whole[start:].tolist()


@given(batch=st.integers(0, 300), world=st.integers(1, 40), start=st.integers(0, 1000))
def test_any_number_of_ranks_sees_the_same_batch(batch: int, world: int, start: int) -> None:
    """Parts are contiguous, differ by at most one, and their signatures add up to the batch's."""
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    positions = np.arange(start, start + batch)
    indices = global_batch(1, 37, start, batch)
    assert np.concatenate([positions[part] for part in parts]).tolist() == positions.tolist()
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1
    total = sum(signature(positions[p], indices[p]) for p in parts) % 2**64
    assert total == signature(positions, indices)


def test_the_signature_sees_swapped_and_repeated_samples() -> None:
    """Another sample at a position, or two that change places, is another signature."""
    positions, indices = np.arange(4), np.array([3, 1, 2, 0])
    signatures = {
        signature(positions, changed)
        for changed in (indices, indices[[1, 0, 2, 3]], np.array([3, 3, 2, 0]))
    }
    assert len(signatures) == 3


def test_an_empty_dataset_is_refused() -> None:
    """No endless loop over nothing."""
    with pytest.raises(ValueError, match="in a dataset of 0"):
        global_batch(0, 0, 0, 1)
