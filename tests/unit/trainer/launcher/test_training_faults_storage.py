"""Data that is not what it was, and stores that fail under ranks that train for real."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from storage_faults import Fault
from training_pods import EVERY, STEPS, Samples, TrainingRun, last_shard

from daybreak_trainer.contract import ExitCode

pytestmark = pytest.mark.training


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [
        damage,
        pytest.param(truncate, marks=pytest.mark.e2e),
        pytest.param(Path.unlink, marks=pytest.mark.e2e),
    ],
    ids=["damaged", "truncated", "missing"],
)
def test_a_bad_shard(training: TrainingRun, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """Training goes on up to the step that needs it, ends with 65 and the shard's name, and ranks
    are not started again for it."""
    training.dataset = shutil.copytree(training.dataset, tmp_path / "spoilt")
    shard, step = last_shard(training.dataset)
    spoil(shard)
    interval = 2
    often = {"checkpoint_interval_steps": interval, "health": {"rankRestarts": 3}}
    with training.attempt(**often) as pod:
        code, termination = pod.end()
    print(f"needed at step {step}: {termination.message}")
    assert (code, termination.reason) == (ExitCode.BAD_DATA, "BadData")
    assert str(shard) in termination.message
    assert 2 < step - 2 <= termination.step < step
    due = termination.step // interval * interval
    assert training.steps(1)[-1] >= due - interval, "at most one save was in flight"


@pytest.mark.e2e
def test_a_checkpoint_volume_that_is_full_for_a_while(
    training: TrainingRun, undisturbed: Samples
) -> None:
    """Two saves fail, which the log says with the store's words; training goes on, and what comes
    after them is committed."""
    full = [Fault("write", f"step-{n * EVERY:08d}/__1_", "fill", rank=1) for n in (1, 2)]
    with training.attempt(*full) as pod:
        code, termination = pod.end()
        failures = pod.events("checkpoint_failed")
    assert code == ExitCode.DONE, termination
    assert {event["step"] for event in failures} == {EVERY, 2 * EVERY}
    assert all("No space left on device" in event["error"] for event in failures)
    assert training.steps(1) == [3 * EVERY, STEPS]
    assert training.samples() == undisturbed


@pytest.mark.e2e
def test_a_checkpoint_volume_that_stays_full(training: TrainingRun, undisturbed: Samples) -> None:
    """After three failures in a row the attempt ends with the store's words: going on would only
    add to what the next failure loses. The commit before them stands."""
    full = [
        Fault("write", f"step-{step:08d}/__1_", "fill", rank=1) for step in range(12, STEPS + 1, 6)
    ]
    every = {"checkpoint_interval_steps": 6, "health": {"rankRestarts": 0}}
    with training.attempt(*full, **every) as pod:
        code, termination = pod.end()
        failures = pod.events("checkpoint_failed")
    assert (code, termination.reason) == (ExitCode.FAILED, "StorageFailed")
    assert "No space left on device" in termination.message
    assert [event["step"] for event in failures if event["rank"] == 0] == [12, 18, 24]
    assert training.steps(1) == [6]
    start = training.complete().resumed_from
    assert start is not None
    assert start.step == 6
    assert training.samples() == undisturbed
