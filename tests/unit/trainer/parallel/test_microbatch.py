"""How a share of the global batch becomes passes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.parallel.microbatch import Pass, PassPlan, plan, split

GLOBAL, WORLD = st.integers(1, 200), st.integers(1, 40)
DEVICE = st.none() | st.integers(1, 64)


@given(GLOBAL, WORLD, DEVICE)
def test_all_ranks_make_the_same_passes_and_each_sample_counts_once(
    size: int, world: int, device: int | None
) -> None:
    """Every rank makes equally many passes of equally many rows, no more rows than the device
    takes, and together they count every sample of the global batch exactly once."""
    made = plan(size, world, device)
    seen: list[int] = []
    for rank in range(world):
        part = rank_slice(size, rank, world)
        passes = split(made, part.stop - part.start)
        assert len(passes) == made.passes
        for one in passes:
            assert 0 <= one.counted <= one.rows == made.rows
            seen += range(part.start + one.start, part.start + one.stop)
        counts = [one.counted for one in passes]
        assert max(counts) - min(counts) <= 1
    assert seen == list(range(size))
    if device is not None:
        assert made.rows <= device


@given(GLOBAL, WORLD, DEVICE)
def test_there_are_no_more_passes_than_needed(size: int, world: int, device: int | None) -> None:
    """One less would not fit the device of the rank with the most samples."""
    made = plan(size, world, device)
    most = -(-size // world)
    assert made.passes == 1 or (made.passes - 1) * (device or most) < most


def test_a_rank_without_samples_takes_part() -> None:
    """Three samples on four ranks, one at a time: the last rank's only pass counts nothing."""
    made = plan(3, 4, 1)
    assert made == PassPlan(passes=1, rows=1)
    assert split(made, 0) == [Pass(0, 0, 1)]
