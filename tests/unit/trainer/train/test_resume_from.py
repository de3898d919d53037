"""A run whose budget was used up is continued by another one. Real ranks over gloo."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from rank_runs import Bench

from daybreak_trainer.checkpoint.layout import CommitPoint, SourceCommit
from daybreak_trainer.contract import BudgetSettings, ExitCode
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve
from daybreak_trainer.telemetry.progress import ProgressFile

STEPS = 14
RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 5}],
        "schedule": {"warmupSteps": 2, "cooldownShare": 0.5},
    }
)


def test_two_runs_learn_what_one_would(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """The second goes on in the middle of the first one's schedule with the very next sample, on
    another number of ranks, with a budget of its own; and is itself stopped and gone on from."""
    prepare("digits", tmp_path / "dataset", count=32, shard_bytes=1 << 12)

    def bench(name: str, uid: str) -> Bench:
        return Bench(tmp_path / name, tmp_path / "dataset", fork_server, RECIPE, uid=uid)

    calm, first, second = bench("calm", "c"), bench("first", "u"), bench("second", "v")
    assert calm.attempt(1, 1) == [ExitCode.DONE]
    assert first.attempt(1, 1, stop_at=3) == [ExitCode.CHECKPOINTED]
    spent = BudgetSettings(duration_seconds=1e-3)
    assert first.attempt(2, 1, budget=spent) == [ExitCode.DO_NOT_RESTART]
    source = first.last(1).url
    told = {"resume_from": source, "budget": BudgetSettings(duration_seconds=1e7)}
    assert second.attempt(1, 2, stop_at=8, **told) == [ExitCode.CHECKPOINTED] * 2
    progress = ProgressFile(second.folder / "work-1-0").read()
    assert progress is not None
    assert progress.resumed_from is not None
    assert (progress.resumed_from.url, progress.resumed_from.step) == (source, 5)
    assert second.attempt(2, 1, **told) == [ExitCode.DONE]
    assert (second.origin(1), second.origin(2)) == (None, CommitPoint(attempt=1, step=10))
    state = second.commit(2).state
    origin = SourceCommit(url=source, uid="u", point=CommitPoint(attempt=1, step=5))
    assert (state.source, state.step, state.samples) == (origin, STEPS, 5 * STEPS)
    whole, parts = calm.journal(1), second.journal(2)
    assert [line.world for line in parts] == [1] * 5 + [2] * 5 + [1] * 4
    sampled = [(line.step, line.position, line.size, line.samples) for line in whole]
    assert [(line.step, line.position, line.size, line.samples) for line in parts] == sampled
    losses = [line.loss for line in parts]
    assert losses == pytest.approx([line.loss for line in whole], rel=1e-5)
    third = bench("third", "w")
    assert third.attempt(1, 1, resume_from=f"{source[:-1]}9") == [ExitCode.BAD_RECIPE]
    assert "resumeFrom: cannot begin from" in third.said(1, 0)
