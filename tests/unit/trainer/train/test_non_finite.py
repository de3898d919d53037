"""A gradient that is not finite on one rank, in a whole run: a step is skipped on all ranks, many
in a row take the run back to its last commit, and it passes over the data that led there."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from rank_runs import Bench

from daybreak_trainer.contract import BudgetSettings, ExitCode, HealthSettings
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve

STEPS, BATCH, LIMIT = 21, 4, 3
RECIPE = resolve(
    {"preset": "smoke", "stages": [{"resolution": 16, "steps": STEPS, "batchSize": BATCH}]}
)
EVERY_FOUR_STEPS = {
    "checkpoint_interval_steps": 4,
    "health": HealthSettings(non_finite_steps=LIMIT),
}


@pytest.fixture
def bench(fork_server: ForkServerContext, tmp_path: Path) -> Bench:
    prepare("digits", tmp_path / "dataset", count=64)
    return Bench(tmp_path / "run", tmp_path / "dataset", fork_server, RECIPE)


def positions(steps: range) -> range:
    """Of an undisturbed run's samples in these steps, counted from 1."""
    return range((steps.start - 1) * BATCH, (steps.stop - 1) * BATCH)


def test_few_bad_steps_are_skipped(bench: Bench) -> None:
    """Below the limit the run goes on; every sample has its step, and nothing is passed over."""
    bad = positions(range(10, 10 + LIMIT - 1))
    assert bench.attempt(1, 2, poisoned=bad, **EVERY_FOUR_STEPS) == [ExitCode.DONE] * 2
    assert [line.position for line in bench.journal(1)] == [n * BATCH for n in range(STEPS)]
    assert bench.commit(1).state.skipped == ()


@pytest.mark.parametrize("first", [10, 11])
def test_many_bad_steps_take_the_run_back_and_past_their_data(bench: Bench, first: int) -> None:
    """The run goes back to the commit of step 8, leaves out what came after it, and does all its
    steps; where it went back to and what it left out stand in its commits. A save that is due
    after step 12, amid bad steps, waits: the run would find itself there."""
    bad = positions(range(first, first + LIMIT))
    end = first + LIMIT - 1
    assert bench.attempt(1, 2, poisoned=bad, **EVERY_FOUR_STEPS) == [ExitCode.DONE] * 2
    state, journal = bench.commit(1).state, bench.journal(1)
    (passed,) = state.skipped
    # A save is due after step 12, and for that all steps are agreed on at once.
    assert (passed.step, passed.start, passed.end) == (8, 8 * BATCH, end * BATCH)
    assert [line.step for line in journal] == list(range(1, STEPS + 1))
    assert [line.position for line in journal] == [
        n * BATCH + ((end - 8) * BATCH if n >= 8 else 0) for n in range(STEPS)
    ]
    assert (state.samples, state.data.samples) == (STEPS * BATCH, (STEPS + end - 8) * BATCH)


def test_what_a_roll_back_cost_is_planned_for(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """With shares of a budget the rest of the run is decided anew where it goes on from: the
    commit's plan, if it has one, counts on time that is gone."""
    prepare("digits", tmp_path / "dataset", count=64)
    stages = [{"resolution": 16, "share": 1.0, "batchSize": BATCH}]
    recipe = resolve({"preset": "smoke", "stages": stages})
    bench = Bench(tmp_path / "run", tmp_path / "dataset", fork_server, recipe)
    budget, bad = BudgetSettings(duration_seconds=1e7), positions(range(10, 10 + LIMIT))
    codes = bench.attempt(1, 1, 14, poisoned=bad, budget=budget, **EVERY_FOUR_STEPS)
    assert codes == [ExitCode.CHECKPOINTED]
    assert [(d.step, d.reason) for d in bench.commit(1).state.decisions] == [(8, "resumed")]


def test_what_goes_on_after_a_roll_back_ends_the_run(bench: Bench) -> None:
    """Exit 77: another attempt would end the same way."""
    codes = bench.attempt(1, 2, poisoned=positions(range(10, 1000)), **EVERY_FOUR_STEPS)
    assert codes == [ExitCode.NON_FINITE] * 2
    assert "after a roll-back" in bench.said(1, 0)


def test_a_run_that_never_was_finite_has_nothing_to_go_back_to(bench: Bench) -> None:
    codes = bench.attempt(1, 1, poisoned=positions(range(1, 1000)), health=HealthSettings())
    assert codes == [ExitCode.NON_FINITE]
    assert "before anything was committed" in bench.said(1, 0)


def test_a_stop_amid_bad_steps_does_not_hide_where_to_go_back_to(bench: Bench) -> None:
    """What a stop commits then has the weights of before the bad steps and no older: the next
    attempt counts on from there, and goes back past it."""
    limits = EVERY_FOUR_STEPS | {"health": HealthSettings(non_finite_steps=5)}
    bad = positions(range(10, 15))
    stopped = bench.attempt(1, 2, stop_at=11, poisoned=bad, **limits)
    assert stopped == [ExitCode.CHECKPOINTED] * 2
    # A save is due after step 12: there all steps are agreed on, and so is the stop.
    assert (bench.commit(1).step, bench.commit(1).state.bad_steps) == (12, 3)
    assert bench.attempt(2, 2, poisoned=bad, **limits) == [ExitCode.DONE] * 2
    (passed,) = bench.commit(2).state.skipped
    assert (passed.step, passed.start) == (8, 8 * BATCH)
    assert [line.step for line in bench.journal(2)] == list(range(1, STEPS + 1))
