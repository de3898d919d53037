"""The averaged weights of a sharded model are judged as those of a whole one are, and training goes
on as if nobody had looked."""

from __future__ import annotations

import runpy
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from daybreak_trainer.evaluate.due import EvaluationDue
from daybreak_trainer.evaluate.sampler import sample
from daybreak_trainer.export.pipeline import build_pipeline
from daybreak_trainer.parallel.process_group import Rank

SCRIPT = Path(__file__).with_name("judging_rank.py")
LENT = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.fixture(scope="module", params=[1, 3])
def sharded(
    request: pytest.FixtureRequest,
    fork_server: ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    folder, world = tmp_path_factory.mktemp("judging"), request.param
    given = {"world": world, "store": str(folder / "store"), "out": str(folder / "out.pt")}
    ranks = [
        fork_server.Process(target=runpy.run_path, args=(str(SCRIPT), given | {"rank": rank}))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * world
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The averaged weights in a plain model of one process."""
    store = tmp_path_factory.mktemp("whole") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    try:
        model, text = LENT.perturbed(2)
        with torch.no_grad():
            found = LENT.judged(model, text, Rank(0, 1, torch.device("cpu")))
        weights = {name: p.detach() for name, p in model.named_parameters()}
        pipeline: Any = build_pipeline(LENT.RECIPE, weights, text)
        pipeline.set_progress_bar_config(disable=True)
    finally:
        dist.destroy_process_group()
    exported = sample(pipeline, LENT.PROMPTS, steps=4, guidance=3.0, seed=LENT.SEED)
    return found | {"exported": exported}


def test_any_number_of_ranks_comes_to_one_loss(
    sharded: dict[str, Any], whole: dict[str, Any]
) -> None:
    """Of seven samples, over three ranks too; in every range of timesteps, but for rounding."""
    assert sharded["loss"].samples == whole["loss"].samples == LENT.TOTAL
    assert sharded["loss"].loss == pytest.approx(whole["loss"].loss, rel=1e-5)
    assert sharded["loss"].bins == pytest.approx(whole["loss"].bins, rel=1e-5)
    assert list(whole["loss"].bins) == ["0-0.3", "0.3-0.6", "0.6-1"]


def test_samples_are_those_of_the_export(sharded: dict[str, Any], whole: dict[str, Any]) -> None:
    """Drawn by any number of ranks, by the model that is trained: what a user draws from the
    export with the same seed, to the rounding of a pixel."""
    assert len({image.tobytes() for image in whole["exported"]}) == len(LENT.PROMPTS)
    for images in (sharded["images"], whole["images"]):
        difference = np.abs(images.astype(int) - whole["exported"].astype(int))
        assert difference.max() <= 1


def test_nothing_that_training_depends_on_changes(sharded: dict[str, Any]) -> None:
    """Weights, averages, gradients and random numbers are the same bits; and the next pass computes
    with the weights, not with what was gathered of the averages."""
    assert sharded["untouched"]
    assert sharded["same"]


def test_judging_takes_a_twentieth_of_the_time_at_most() -> None:
    """Where it comes by time; by steps it comes when the run says."""
    now = [0.0]
    due = EvaluationDue(60.0, None, lambda: now[0])
    assert not due.by_time()
    now[0] = 60.0
    assert due.by_time()
    now[0] = 70.0
    due.took(1, 10.0)
    now[0] = 70.0 + 189.0
    assert not due.by_time()
    now[0] = 70.0 + 190.0
    assert due.by_time()
    due.took(1, 1.0)
    now[0] += 60.0
    assert due.by_time()
    steps = EvaluationDue(None, 20, lambda: now[0])
    assert [step for step in range(1, 50) if steps.by_steps(step)] == [20, 40]
    assert not steps.by_time()
