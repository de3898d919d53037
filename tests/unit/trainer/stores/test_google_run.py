"""A run that reads its data from Cloud Storage, and leaves checkpoints and model there."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from google_server import GoogleServer
from rank_runs import Bench

from daybreak_trainer.checkpoint.layout import CommitPoint
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ExitCode
from daybreak_trainer.export.publish import check
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve


def put(gs: GoogleServer, folder: Path, url: str) -> None:
    prepare("digits", folder, count=40, shard_bytes=1 << 13)
    place = Storage(url, gs.options())
    for file in folder.iterdir():
        place.write(file.name, file.read_bytes())


@pytest.mark.training
@pytest.mark.e2e
def test_a_run_without_volumes_is_stopped_and_goes_on(
    gs: GoogleServer, fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Two ranks over gloo, stopped and started again: the second attempt resumes from what the
    first one committed, whose files are verified as they are read, and the model is there."""
    root = f"gs://{gs.new_bucket()}"
    put(gs, tmp_path / "digits", f"{root}/digits")
    recipe = resolve(
        {"preset": "smoke", "stages": [{"resolution": 16, "steps": 12, "batchSize": 5}]}
    )
    bench = Bench(
        tmp_path / "run", f"{root}/digits", fork_server, recipe, f"{root}/runs", gs.options()
    )
    assert bench.attempt(1, ranks=2, stop_at=4) == [ExitCode.CHECKPOINTED] * 2, bench.said(1, 0)
    assert bench.attempt(2, ranks=2) == [ExitCode.DONE] * 2, bench.said(2, 0)
    assert bench.origin(2) == CommitPoint(attempt=1, step=6)
    assert [line.step for line in bench.journal(2)] == list(range(1, 13))
    card = check(Storage(f"{root}/runs/models", gs.options()), "run", "u")
    assert card is not None
    assert card.step == 12
