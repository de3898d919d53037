"""A run that is stopped and goes on with another number of ranks learns what an undisturbed one
learns: the same samples in the same steps, and the same losses but for rounding.

Real ranks over gloo, each a process.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rank_runs import Bench
from typer.testing import CliRunner

from daybreak_cli.main import app
from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checkpoint.layout import CommitPoint, attempt_folder
from daybreak_trainer.checkpoint.snapshots import read_index
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ComputeSettings, ExitCode, StreamSettings
from daybreak_trainer.export.post_hoc import plan, put_together
from daybreak_trainer.export.publish import check
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve

STEPS = 21
RECIPE = resolve(
    {
        "preset": "smoke",
        "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 5}],
        "optimizer": {"learningRate": 3e-3},
        "schedule": {"warmupSteps": 2},
        "ema": {"power": {"snapshots": 3}},
    }
)
"""Five images a step: two ranks compute three and two of them."""
_LOSS_TOLERANCE = 1e-5
"""One rank adds the gradients of five images, two ranks those of three and two and then the two
sums: fp32 rounding, 1e-7 of a gradient, which fourteen AdamW steps carry on. Measured: 2e-7."""


@pytest.fixture(scope="module")
def calm(fork_server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A run that is left alone."""
    folder = tmp_path_factory.mktemp("calm")
    prepare("digits", folder / "dataset", count=64, shard_bytes=1 << 12)
    bench = Bench(folder / "run", folder / "dataset", fork_server, RECIPE)
    assert bench.attempt(1, ranks=2) == [ExitCode.DONE] * 2
    return bench


def another(calm: Bench, folder: Path) -> Bench:
    """A run of the same recipe on the same data."""
    return Bench(folder, calm.dataset, calm.context, RECIPE)


def test_two_ranks_one_rank_two_ranks_are_one_run(calm: Bench, tmp_path: Path) -> None:
    """Every stop commits at one step that all ranks agree on, every attempt goes on from the commit
    before it, and the journal of the last holds each step once: the samples of the undisturbed run,
    and its losses. Up to the first change of size they are equal to the bit."""
    stopped = another(calm, tmp_path / "stopped")
    assert stopped.attempt(1, ranks=2, stop_at=6) == [ExitCode.CHECKPOINTED] * 2
    assert stopped.attempt(2, ranks=1, stop_at=13) == [ExitCode.CHECKPOINTED]
    assert stopped.attempt(3, ranks=2) == [ExitCode.DONE] * 2
    origins = [stopped.origin(attempt) for attempt in (1, 2, 3)]
    assert origins[0] is None
    # What is agreed on after a step is read two steps later: there the stop takes effect.
    assert origins[1:] == [CommitPoint(attempt=1, step=8), CommitPoint(attempt=2, step=15)]
    whole, parts = calm.journal(1), stopped.journal(3)
    assert [line.world for line in parts] == [2] * 8 + [1] * 7 + [2] * 6
    assert [line.step for line in parts] == list(range(1, STEPS + 1))
    assert [_sampled(line) for line in parts] == [_sampled(line) for line in whole]
    assert parts[:8] == whole[:8]
    losses = [line.loss for line in parts]
    assert losses == pytest.approx([line.loss for line in whole], rel=_LOSS_TOLERANCE)
    assert losses[8:] != [line.loss for line in whole[8:]], "is rounding no longer different?"

    assert_same_averages(calm, stopped, attempt=3)


def assert_same_averages(calm: Bench, stopped: Bench, attempt: int) -> None:
    """The power averages and the snapshots of them: of another number of ranks in each attempt, and
    as if nothing had happened, but for rounding."""
    whole, parts = (
        bench.tensors(number, lambda name: name.startswith("power."))
        for bench, number in ((calm, 1), (stopped, attempt))
    )
    assert float(whole["power.samples"]) == float(parts["power.samples"]) == 5 * STEPS
    assert len(whole) > 10
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)
    for bench in (calm, stopped):
        kept = read_index(bench.storage).snapshots
        assert [(s.point.step, s.samples) for s in kept] == [(7, 35), (14, 70), (21, 105)]
    chosen = plan(stopped.storage, 0.10)
    assert chosen.combination.error == 0.0
    made = put_together(chosen)
    assert made.keys() == {name.removeprefix("power.1.") for name in whole if ".1." in name[:8]}
    for name, value in made.items():
        expected = parts[f"power.1.{name}"].bfloat16().float()
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_another_average_is_exported_without_the_run(calm: Bench, tmp_path: Path) -> None:
    """`daybreak ema`: the folder of an export, from the run's storage alone; what cannot be is said
    with the number."""
    out = tmp_path / "models" / "wider"
    checkpoints = str(calm.folder / "checkpoints")
    command = ["ema", checkpoints, "--deviation", "0.15", "--out", str(out), "--dtype", "bf16"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "fit error 0.1472" in result.output
    ours, runs = (
        {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        for root in (out, calm.folder / "models" / "run")
    )
    assert ours == runs - {"samples.png", "evaluation.json"}
    assert "relative deviation 0.15 at 105 samples" in (out / "README.md").read_text()
    before = (out / "daybreak.json").read_bytes()
    assert CliRunner().invoke(app, command).exit_code == 0  # the very same: it stays
    for place in (out, calm.folder / "models" / "run"):
        command = ["ema", checkpoints, "--deviation", "0.1", "--out", str(place)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "holds a model of the same run" in result.output
    assert (out / "daybreak.json").read_bytes() == before
    early = tmp_path / "early"
    command = ["ema", checkpoints, "--deviation", "0.1", "--at", "50", "--out", str(early)]
    assert CliRunner().invoke(app, command).exit_code == 0
    card = (early / "README.md").read_text()
    assert "105 training samples in 21 steps" in card
    assert "deviation 0.1 at 50 samples" in card
    for wrong, said in ((["0.5"], "at most 0.28"), (["0.1", "--at", "106"], "end at 105")):
        command = ["ema", checkpoints, "--out", str(tmp_path / "no"), "--deviation", *wrong]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert said in result.output


def _sampled(line: HistoryLine) -> dict[str, object]:
    return {key: value for key, value in asdict(line).items() if key not in ("loss", "world")}


def test_the_optimizer_counts_the_runs_steps(calm: Bench) -> None:
    """No more and no fewer: bias correction depends on it."""
    counts = calm.tensors(1, lambda name: name.endswith(".step"))
    assert counts
    assert {float(value) for value in counts.values()} == {float(STEPS)}


def test_a_complete_run_completes_again_at_once(calm: Bench) -> None:
    """An attempt that finds the run's last commit trains no step, leaves the model where it is, and
    is done: the pod may have died between export and exit."""
    models = Storage(str(calm.folder / "models"))
    before = check(models, "run", "u")
    assert before is not None
    assert before.step == STEPS
    assert calm.attempt(2, ranks=1) == [ExitCode.DONE]
    assert calm.storage.folders(attempt_folder(2)) == []
    assert check(models, "run", "u") == before


def test_more_ranks_than_images_train_the_same(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """One image a step on two ranks: the rank without one takes part and changes nothing. Muon's
    state, which only owners use whole, travels too."""
    prepare("digits", tmp_path / "dataset", count=16)
    recipe = resolve(
        {
            "preset": "smoke",
            "stages": [{"resolution": 16, "steps": 6, "batchSize": 1}],
            "optimizer": {"kind": "muon"},
        }
    )
    journals = []
    for name, sizes in (("one", (1,)), ("two", (2, 1))):
        bench = Bench(tmp_path / name, tmp_path / "dataset", fork_server, recipe)
        for number, ranks in enumerate(sizes, start=1):
            last = number == len(sizes)
            ending = ExitCode.DONE if last else ExitCode.CHECKPOINTED
            stop_at = None if last else 2
            assert bench.attempt(number, ranks, stop_at) == [ending] * ranks
        journals.append(bench.journal(len(sizes)))
    one, two = journals
    assert [line.world for line in two] == [2] * 4 + [1] * 2
    assert [_sampled(line) for line in two] == [_sampled(line) for line in one]
    losses = [line.loss for line in two]
    assert losses == pytest.approx([line.loss for line in one], rel=_LOSS_TOLERANCE)


@pytest.mark.training
def test_four_two_three_four_ranks_are_one_run(calm: Bench, tmp_path: Path) -> None:
    """Over sizes, meshes (FSDP, HSDP of 2 × 2) and passes a step, a run sees the same samples and
    learns the same as one that one process trained at once."""
    alone = another(calm, tmp_path / "alone")
    elastic = another(calm, tmp_path / "elastic")
    assert alone.attempt(1, ranks=1) == [ExitCode.DONE]
    sizes = [
        (4, 2, ComputeSettings(sharding="hsdp")),
        (2, 1, ComputeSettings(device_batch_size=1)),
        (3, 1, ComputeSettings(activation_checkpointing="blocks")),
        (4, 1, ComputeSettings(sharding="fsdp", device_batch_size=1)),
    ]
    for number, (ranks, nodes, compute) in enumerate(sizes, start=1):
        last = number == len(sizes)
        codes = elastic.attempt(
            number, ranks, None if last else 5 * number - 2, nodes=nodes, compute=compute
        )
        assert codes == [ExitCode.DONE if last else ExitCode.CHECKPOINTED] * ranks
    parts, whole = elastic.journal(4), alone.journal(1)
    assert [line.world for line in parts] == [4] * 5 + [2] * 5 + [3] * 5 + [4] * 6
    assert [_sampled(line) for line in parts] == [_sampled(line) for line in whole]
    losses = [line.loss for line in parts]
    assert losses == pytest.approx([line.loss for line in whole], rel=_LOSS_TOLERANCE)


@pytest.mark.training
def test_a_compiled_run_goes_on_as_it_was(calm: Bench, tmp_path: Path) -> None:
    """Compiled or not, checkpoints and samples are the same; what was compiled lies beside the
    checkpoints for the next attempt."""
    mixed = another(calm, tmp_path / "mixed")
    compiled = ComputeSettings(compile="blocks")
    assert mixed.attempt(1, 1, stop_at=6, compute=compiled) == [ExitCode.CHECKPOINTED]
    assert len(mixed.storage.files("compiled")) == 1
    assert mixed.attempt(2, 2) == [ExitCode.DONE] * 2
    whole, parts = calm.journal(1), mixed.journal(2)
    assert [_sampled(line) for line in parts] == [_sampled(line) for line in whole]
    losses = [line.loss for line in parts]
    assert losses == pytest.approx([line.loss for line in whole], rel=_LOSS_TOLERANCE)


def test_streams_buckets_and_skipped_samples_on_any_number_of_ranks(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Two weighted streams, one of them in buckets of three shapes and with samples to skip: a run
    that goes on with another number of ranks sees what it would have seen, batch by batch of one
    shape, and never what is skipped."""
    photos, random = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(30):
        size = [(40, 24), (24, 40), (32, 32)][number % 3]
        pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.png")
        (photos / f"{number:02d}.txt").write_text(f"photo {number}")
    prepare(str(photos), tmp_path / "a", resolution=32, in_buckets=True)
    prepare("digits", tmp_path / "b", count=20, resolution=32)
    shard = next((tmp_path / "b").glob("*.mds")).name
    (tmp_path / "b" / "skip.json").write_text(json.dumps({shard: [0, 3, 19]}))
    streams = (
        StreamSettings(url=str(tmp_path / "a"), role="data-0", weight=2.0),
        StreamSettings(url=str(tmp_path / "b"), role="data-1"),
    )
    stage = {"resolution": 32, "steps": STEPS, "batchSize": 5}
    recipe = resolve({"preset": "smoke", "stages": [stage]})
    whole, parts = (
        Bench(tmp_path / name, tmp_path / "a", fork_server, recipe) for name in ("whole", "parts")
    )
    assert whole.attempt(1, 1, streams=streams) == [ExitCode.DONE]
    assert parts.attempt(1, 2, stop_at=6, streams=streams) == [ExitCode.CHECKPOINTED] * 2
    assert parts.attempt(2, 1, streams=streams) == [ExitCode.DONE]
    one, two = whole.journal(1), parts.journal(2)
    assert [_sampled(line) for line in two] == [_sampled(line) for line in one]
    losses = [line.loss for line in two]
    assert losses == pytest.approx([line.loss for line in one], rel=_LOSS_TOLERANCE)
    assert len(whole.commit(1).state.data.buckets) == 3


def test_stages_of_two_resolutions_are_one_run_on_any_number_of_ranks(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """16 px, then 32, then 16 again, which go on where the first stage stopped: stopped in two of
    the stages and gone on from with another number of ranks, a run sees the same samples in batches
    of the same sizes and learns the same."""
    streams = []
    for number, resolution in enumerate((16, 32)):
        prepare("digits", tmp_path / f"{resolution}", count=40, resolution=resolution)
        streams.append(StreamSettings(url=str(tmp_path / f"{resolution}"), role=f"data-{number}"))
    recipe = resolve(
        {
            "preset": "smoke",
            "stages": [
                {"resolution": 16, "steps": 7, "batchSize": 5},
                {"resolution": 32, "steps": 7, "batchSize": 3, "warmupSteps": 2},
                {"resolution": 16, "steps": 2, "batchSize": 4},
            ],
        }
    )
    whole, parts = (
        Bench(tmp_path / name, tmp_path / "16", fork_server, recipe) for name in ("whole", "parts")
    )
    kept = {"streams": tuple(streams)}
    assert whole.attempt(1, 1, **kept) == [ExitCode.DONE]
    assert parts.attempt(1, 2, stop_at=3, **kept) == [ExitCode.CHECKPOINTED] * 2
    assert parts.attempt(2, 1, stop_at=9, **kept) == [ExitCode.CHECKPOINTED]
    assert parts.attempt(3, 2, **kept) == [ExitCode.DONE] * 2
    one, two = whole.journal(1), parts.journal(3)
    assert [line.world for line in two] == [2] * 5 + [1] * 6 + [2] * 5
    assert [line.size for line in two] == [5] * 7 + [3] * 7 + [4] * 2
    assert [_sampled(line) for line in two] == [_sampled(line) for line in one]
    losses = [line.loss for line in two]
    assert losses == pytest.approx([line.loss for line in one], rel=_LOSS_TOLERANCE)
    assert whole.commit(1).state.data.buckets == {"16px/16x16": 43, "32px/32x32": 21}
