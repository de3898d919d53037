"""How a global batch is shared out, and how it is told from any other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.data.signature import signature


@given(batch=st.integers(0, 300), world=st.integers(1, 40), seed=st.integers(0, 99))
def test_any_number_of_ranks_shares_the_same_batch(batch: int, world: int, seed: int) -> None:
    """Parts are contiguous, differ by at most one, and their signatures add up to the batch's."""
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    generator = np.random.default_rng(seed)
    positions, indices = np.arange(batch), generator.integers(0, 1000, batch)
    assert np.concatenate([positions[part] for part in parts]).tolist() == positions.tolist()
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) - min(lengths) <= 1
    total = sum(signature(positions[p], indices[p]) for p in parts) % 2**64
    assert total == signature(positions, indices)


@given(st.permutations(range(12)))
def test_the_signature_does_not_depend_on_the_order_within_a_batch(order: list[int]) -> None:
    """Samples are dealt out by lane, not by position; a batch is the same batch however it lies."""
    positions, indices = np.arange(12), np.arange(12) * 7
    assert signature(positions[order], indices[order]) == signature(positions, indices)


def test_the_signature_sees_swapped_and_repeated_samples() -> None:
    """Another sample at a position, or two that change places, is another signature."""
    positions, indices = np.arange(4), np.array([3, 1, 2, 0])
    signatures = {
        signature(positions, changed)
        for changed in (indices, indices[[1, 0, 2, 3]], np.array([3, 3, 2, 0]))
    }
    assert len(signatures) == 3
