"""Steps that do not fit into budget or deadline: who looks at the run sees where it will end."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import pytest
import torch
from run_settings import run_settings

from daybreak_trainer.contract import Progress
from daybreak_trainer.health.heartbeat import Heartbeat
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.plan.reach import Reach
from daybreak_trainer.rank import LimitReachedError, Standing
from daybreak_trainer.recipe import resolve
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.settings import Settings
from daybreak_trainer.telemetry.progress import ProgressFile
from daybreak_trainer.telemetry.throughput import Throughput

LIMIT = "spec.budget.duration"


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """Of a run of 3,000 steps of 8 images."""
    stages = [{"resolution": 16, "batchSize": 8, "steps": 3000}]
    recipe = resolve({"preset": "smoke", "stages": stages})
    settings = Settings(run_settings(), 0, recipe, tmp_path, tmp_path)
    rank = Rank(0, 1, torch.device("cpu"))
    return RunContext(settings, rank, Standing(), Heartbeat(tmp_path, 0))


def told(context: RunContext) -> Progress:
    found = ProgressFile(context.settings.work_dir).read()
    assert found is not None
    return found


def test_an_early_end_is_told_and_told_again_where_it_moves(
    context: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    """By more than 2 % of all steps: every look has a number of its own. Where all steps fit after
    all, nothing is told any more."""
    caplog.set_level(logging.WARNING)
    ends = []
    for last_step in (3000, 1700, 1750, 1640, 1600, 3000, 1610):
        context.reaches(Reach(20, last_step, 40, LIMIT, 2))
        end = told(context).ends_early
        ends.append(None if end is None else end.step)
    assert ends == [None, 1700, 1700, 1700, 1600, None, 1600]
    said = [vars(record) for record in caplog.records if record.message == "steps_do_not_fit"]
    assert [line["fitting_steps"] for line in said] == [1700, 1600]
    assert said[0]["remedy"].startswith(f"take 2 devices, raise {LIMIT}")


def test_the_time_of_completion_is_that_of_the_last_step_that_fits(context: RunContext) -> None:
    """At 8 images/s a step takes 1 s."""
    speed = Throughput(8.0, 8.0, 0.0, None, None, None)
    agreed = Agreed(100, False, False, 0, 0.5, 1.0, True, ())
    for last_step in (3000, 1700):
        context.reaches(Reach(20, last_step, 40, LIMIT))
        context.progress.phase("Training")
        context.progress.step(agreed, context.state, context.course, speed, {})
        context.progress.phase("Training")  # which writes at once
        found = told(context)
        assert found.estimated_completion_time is not None
        end = datetime.fromisoformat(found.estimated_completion_time)
        left = (end - datetime.fromisoformat(found.updated_at)).total_seconds()
        assert left == pytest.approx(last_step - 100, abs=5)


def test_the_end_names_what_is_there() -> None:
    """No export where the run has no place for one, and nothing before the first step."""
    exported = str(LimitReachedError(LIMIT, 20, 3000, exported=True))
    assert exported.startswith(f"{LIMIT} was used up at step 20 of 3000: the last commit and the")
    assert "export" not in str(LimitReachedError(LIMIT, 20, 3000, exported=False))
    assert "nothing was trained" in str(LimitReachedError(LIMIT, 0, 3000, exported=True))
