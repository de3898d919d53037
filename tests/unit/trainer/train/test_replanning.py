"""A run that plans itself: what is decided is decided for all ranks, kept in checkpoints, and gone
on from. Real ranks over gloo; budgets are so large or so small that no clock matters."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

from rank_runs import Bench

from daybreak_trainer.contract import BudgetSettings, ExitCode
from daybreak_trainer.plan.decide import MEASURED_STEPS
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve
from daybreak_trainer.telemetry.progress import ProgressFile

RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [
            {"resolution": 16, "share": 0.5, "batchSize": 4},
            {"resolution": 16, "share": 0.5, "batchSize": 2},
        ],
        "schedule": {"warmupSteps": 2},
    }
)


def test_decisions_are_followed_by_what_goes_on_from_them(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """The first one is made when a stage was measured, the next one when another number of ranks
    goes on. Where the budget is spent when it does, it takes no step and is exported."""
    prepare("digits", tmp_path / "dataset", count=40)
    bench = Bench(tmp_path / "run", tmp_path / "dataset", fork_server, RECIPE)
    ample, spent = BudgetSettings(duration_seconds=1e7), BudgetSettings(duration_seconds=1e-3)
    stop_at = MEASURED_STEPS + 2
    assert bench.attempt(1, 2, stop_at, budget=ample) == [ExitCode.CHECKPOINTED] * 2
    state = bench.commit(1).state
    assert [(d.step, d.reason) for d in state.decisions] == [(MEASURED_STEPS, "stage")]
    first = state.decisions[0]
    assert MEASURED_STEPS < first.stage_ends[0] < first.stage_ends[1]
    assert state.device_seconds > sum(state.ledger.values()) > 0
    assert bench.attempt(2, 1, state.step + 2, budget=ample) == [ExitCode.CHECKPOINTED]
    smaller = bench.commit(2).state
    assert [(d.step, d.reason) for d in smaller.decisions[1:]] == [(state.step, "resumed")]
    assert smaller.decisions[0] == first
    assert smaller.decisions[1].measured == first.measured / 2
    assert [line.size for line in bench.journal(2)] == [4] * smaller.step
    assert smaller.step > state.step
    assert bench.attempt(3, 1, budget=spent) == [ExitCode.DONE]
    told = ProgressFile(bench.folder / "work-3-0").read()
    assert told is not None
    assert told.step == told.total_steps == smaller.step
    assert (tmp_path / "run" / "models").is_dir()


def test_steps_that_do_not_fit_end_with_a_commit_an_export_and_the_limit(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """The first rank says why the run is not complete; the others have done their part. The commit
    can be gone on from with shares, which begin where it stands."""
    prepare("digits", tmp_path / "dataset", count=40)
    stages = [{"resolution": 16, "steps": 200, "batchSize": 4}]
    recipe = resolve({"preset": "smoke", "stages": stages, "schedule": {"warmupSteps": 2}})
    bench = Bench(tmp_path / "run", tmp_path / "dataset", fork_server, recipe)
    ample, spent = BudgetSettings(duration_seconds=1e7), BudgetSettings(duration_seconds=1e-3)
    assert bench.attempt(1, 1, 3, budget=ample) == [ExitCode.CHECKPOINTED]
    step = bench.commit(1).step
    assert bench.attempt(2, 2, budget=spent) == [ExitCode.DO_NOT_RESTART, ExitCode.DONE]
    assert f"spec.budget.duration was used up at step {step} of 200" in bench.said(2, 0)
    told = ProgressFile(bench.folder / "work-2-0").read()
    assert told is not None
    assert told.phase == "Done"
    assert told.ledger["export"] > 0
    assert told.ends_early is not None
    assert (told.ends_early.step, told.total_steps) == (step, 200)
    assert (tmp_path / "run" / "models").is_dir()
    bench.recipe = RECIPE.model_copy(update={"precision": "bf16"})
    changes = {"accept_changes": ("recipe",), "budget": ample}
    assert bench.attempt(3, 1, step + 1, **changes) == [ExitCode.CHECKPOINTED]
    state = bench.commit(3).state
    assert [(d.step, d.reason) for d in state.decisions] == [(0, "recipe"), (step, "resumed")]
    assert (bench.commit(1).state.precision, state.precision) == ("fp32", "bf16")
    assert state.decisions[1].measured > 0
    assert [line.size for line in bench.journal(3)] == [4] * state.step


def test_shares_without_a_budget_are_refused(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Before anything is trained, with what to add."""
    prepare("digits", tmp_path / "dataset", count=8)
    bench = Bench(tmp_path / "run", tmp_path / "dataset", fork_server, RECIPE)
    assert bench.attempt(1, 1) == [ExitCode.BAD_RECIPE]
    assert "set spec.budget.duration, spec.budget.maxCost or spec.deadline" in bench.said(1, 0)
