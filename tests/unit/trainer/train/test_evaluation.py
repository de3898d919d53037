"""A run that is judged on its way learns to the bit what one learns that is not, and its curve goes
on over a stop. Real ranks over gloo, each a process."""

from __future__ import annotations

import json
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch
from PIL import Image
from rank_runs import Bench

from daybreak_trainer.checkpoint import history
from daybreak_trainer.contract import (
    EvaluationSettings,
    ExitCode,
    ExtractorSettings,
    Progress,
    Validation,
)
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve
from daybreak_trainer.telemetry.progress import ProgressFile

STEPS = 12
RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 5}],
        "optimizer": {"learningRate": 3e-3},
        "schedule": {"warmupSteps": 2},
        "sampling": {"steps": 2},
    }
)
PROMPTS = ("the digit three", "the digit five")


def test_a_run_that_is_judged_is_the_same_run(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Losses and weights are equal to the bit. What was judged before a stop is in the journal of
    the last commit, once, and the end's value is that of the run that was judged at its end alone.
    Grids lie beside the checkpoints, with their prompts."""
    prepare("digits", tmp_path / "dataset", count=64, shard_bytes=1 << 12)
    calm = Bench(tmp_path / "calm", tmp_path / "dataset", fork_server, RECIPE)
    watched = Bench(tmp_path / "watched", tmp_path / "dataset", fork_server, RECIPE)
    at_end = EvaluationSettings(validation_samples=5)
    often = at_end.model_copy(
        update={
            "interval_steps": 3,
            "prompts": PROMPTS,
            "images": 3,
            "extractors": ExtractorSettings(dino=str(tiny_dino(tmp_path / "dino"))),
        },
    )
    assert calm.attempt(1, ranks=2, evaluation=at_end) == [ExitCode.DONE] * 2
    stopped = watched.attempt(1, ranks=2, stop_at=6, evaluation=often)
    assert stopped == [ExitCode.CHECKPOINTED] * 2
    assert watched.attempt(2, ranks=2, evaluation=often) == [ExitCode.DONE] * 2
    assert watched.journal(2) == calm.journal(1)
    weights = calm.tensors(1, lambda name: name.startswith(("model.", "ema.")))
    assert weights
    for name, value in watched.tensors(2, weights.__contains__).items():
        assert torch.equal(value, weights[name]), name
    curve = evaluations(watched, 2)
    # At step 6 a rank is to stop: it is judged no more, for the commit is waited for.
    assert [found.step for found in curve] == [3, 9, STEPS]
    (end,) = evaluations(calm, 1)
    assert curve[-1].loss == end.loss
    assert {found.samples for found in (*curve, end)} == {5}
    assert curve[0].loss is not None
    assert curve[-1].loss is not None
    assert curve[-1].loss < curve[0].loss
    assert told(watched, 2).validation == curve[-1]
    for found in curve:
        assert [(score.name, score.images) for score in found.metrics] == [
            ("frechet_distance", 5),
            ("mmd", 5),
        ]
    assert told(watched, 2).ledger["evaluation"] > sum(found.seconds for found in curve) * 0.5
    samples = watched.storage.child("samples")
    assert sorted(samples.files()) == [
        *(f"step-000000{step}.{kind}" for step in ("03", "09", "12") for kind in ("json", "png"))
    ]
    about = json.loads(samples.read("step-00000003.json"))
    assert [image["prompt"] for image in about["images"]] == [*PROMPTS, PROMPTS[0]]
    with samples.open("step-00000003.png") as file, Image.open(file) as image:
        assert image.width > 128


def tiny_dino(folder: Path) -> Path:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size).save_pretrained(folder)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def evaluations(bench: Bench, attempt: int) -> list[Validation]:
    return list(history.load(bench.last(attempt)).evaluations())


def told(bench: Bench, attempt: int) -> Progress:
    progress = ProgressFile(bench.folder / f"work-{attempt}-0").read()
    assert progress is not None
    return progress


def test_what_found_nothing_left_to_train_is_judged_in_its_last_stage(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """A stop at the last step leaves the evaluation to the next attempt, which begins in the first
    stage: there the model has a path through its blocks that the last one does without."""
    prepare("digits", tmp_path / "dataset", count=40)
    stage = {"resolution": 16, "batchSize": 4}
    recipe = resolve(
        {
            "preset": "smoke",
            "denoiser": {"depth": 3},
            "objective": {"routing": {"kind": "sprint", "share": 0.5, "first": 1, "last": 1}},
            "stages": [{**stage, "steps": 2}, {**stage, "steps": 3, "routing": False}],
            "optimizer": {"learningRate": 3e-3},
        }
    )
    evaluation = EvaluationSettings(validation_samples=5)
    losses = []
    for name, stops in (("calm", []), ("stopped", [5])):
        bench = Bench(tmp_path / name, tmp_path / "dataset", fork_server, recipe)
        for stop_at in stops:
            stopped = bench.attempt(1, ranks=1, stop_at=stop_at, evaluation=evaluation)
            assert stopped == [ExitCode.CHECKPOINTED]
            assert evaluations(bench, 1) == []
        # The last step is due for a commit, and committed once, when it was judged.
        done = bench.attempt(2, ranks=1, evaluation=evaluation, checkpoint_interval_steps=5)
        assert done == [ExitCode.DONE]
        found = told(bench, 2).validation
        assert found is not None
        assert evaluations(bench, 2) == [found]
        losses.append(found.loss)
    assert losses[0] == losses[1]


def test_an_extractor_that_is_not_there_is_named_before_training(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """A day of training is not to end with a wrong path."""
    prepare("digits", tmp_path / "dataset", count=20)
    bench = Bench(tmp_path / "run", tmp_path / "dataset", fork_server, RECIPE)
    given = {"validation_samples": 2, "extractors": {"clip": str(tmp_path / "nothing")}}
    evaluation = EvaluationSettings.model_validate(given)
    assert bench.attempt(1, ranks=1, evaluation=evaluation) == [ExitCode.BAD_RECIPE]
    assert "evaluation.extractors.clip" in bench.said(1, 0)
    assert "nothing" in bench.said(1, 0)
