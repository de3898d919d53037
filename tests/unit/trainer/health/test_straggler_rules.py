"""Scores of ranks: the slow one is named, and nobody else."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.checks import StepChecks
from daybreak_trainer.contract import SlowRank
from daybreak_trainer.health.stragglers import (
    SLOW_SCORE,
    WINDOW_STEPS,
    Straggler,
    Stragglers,
    scores,
)
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.parallel.process_group import Rank

WORK = st.lists(st.floats(0.0, 1e3), min_size=1, max_size=64)


@given(WORK)
def test_scores_are_ratios_in_order(work: list[float]) -> None:
    """In 0..1, a rank that takes longer never scores higher, and a quarter of them are fast."""
    found = scores(work)
    assert all(0 < score <= 1 for score in found)
    busy = sorted((w, s) for w, s in zip(work, found, strict=True) if w > 0)
    assert [s for _, s in busy] == sorted((s for _, s in busy), reverse=True)
    assert sum(score == 1 for score in found) >= len(busy) / 4


@given(WORK, st.floats(0.5, 100))
def test_scores_do_not_depend_on_the_unit(work: list[float], factor: float) -> None:
    """But for work too short to be measured."""
    work = [w + 0.01 for w in work]
    np.testing.assert_allclose(scores([w * factor for w in work]), scores(work), rtol=1e-9)


def follow(work: np.ndarray) -> list[tuple[int, Straggler]]:
    """What is found in (steps, ranks) seconds of work, with the step."""
    stragglers = Stragglers(work.shape[1])
    return [
        (step, found)
        for step, row in enumerate(work.tolist(), start=1)
        for found in stragglers.observe(row)
    ]


@settings(max_examples=50)
@given(st.integers(2, 32), st.floats(1.7, 20.0), st.data())
def test_the_slow_rank_is_named_once(world: int, slower: float, data: st.DataObject) -> None:
    """After two windows in which it was slow, with noise of 10 % and hiccups in a fifth of all
    steps."""
    victim = data.draw(st.integers(0, world - 1))
    # In one of some thousands of such times chance hides the slow rank for a window: not in these.
    generator = np.random.default_rng(0)
    work = 0.2 * np.exp(0.1 * generator.standard_normal((5 * WINDOW_STEPS, world)))
    work *= np.where(generator.random(work.shape) < 0.2, 5.0, 1.0)
    work[WINDOW_STEPS:, victim] *= slower
    found = follow(work)
    assert [(step, straggler.rank) for step, straggler in found] == [(3 * WINDOW_STEPS, victim)]
    assert found[0][1].score < SLOW_SCORE
    assert found[0][1].typical_seconds < found[0][1].seconds


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 64))
def test_equal_ranks_are_no_stragglers(seed: int, world: int) -> None:
    """Whatever the noise, as long as it is everybody's."""
    generator = np.random.default_rng(seed)
    work = 0.2 * np.exp(0.3 * generator.standard_normal((3 * WINDOW_STEPS, world)))
    assert follow(work) == []


def test_a_slow_rank_that_recovers_may_be_named_again() -> None:
    """Each time it becomes slow is news, but not a moment of it."""
    slow = np.repeat([1, 1, 1, 0, 1, 0, 1, 1], WINDOW_STEPS)
    work = np.stack([np.full(len(slow), 0.1), 0.1 + 0.2 * slow], axis=1)
    assert [step for step, _ in follow(work)] == [2 * WINDOW_STEPS, 8 * WINDOW_STEPS]


def test_a_rank_without_images_is_not_judged() -> None:
    """More ranks than images in a batch: it has no work, and is no yardstick."""
    assert scores([0.2, 0.0, 0.2]) == [1.0, 1.0, 1.0]
    assert follow(np.array([[0.2, 0.0]] * WINDOW_STEPS)) == []


def test_the_slow_rank_is_told_as_long_as_it_is_slow() -> None:
    """With the pod that an operator can find it by; a rank that was slow for one window is not."""
    rank = Rank(
        0, 3, torch.device("cpu"), workers=(0, 0, 1), pods=("run-1-0", "run-1-0", "run-1-1")
    )
    checks, told = StepChecks(rank, 10), []
    for slow in (1, 2, 2, 2, 0, 0):
        for step in range(WINDOW_STEPS):
            work = [(0.3 if slow == number else 0.1,) for number in range(3)]
            checks.observe(Agreed(step, False, False, 0, 0.5, 1.0, True, tuple(work)), 0)
        told.append(checks.slow_rank)
    second = SlowRank(rank=2, worker=1, pod="run-1-1", ratio=3.0)
    first = SlowRank(rank=0, worker=0, pod="run-1-0", ratio=3.0)
    assert told == [None, None, second, second, None, first]
