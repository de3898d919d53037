"""Ranks that train for real and then stand still: the pod ends within the clock of progress, says
which rank it was and what it did, and the next attempt completes the run."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from storage_faults import Fault
from training_pods import EVERY, STEPS, Samples, TrainingRun, last_shard, strike
from worker_pods import Pod

from daybreak_trainer.contract import ExitCode, StreamSettings, Termination

pytestmark = pytest.mark.training

PROGRESS_SECONDS = 4.0
HEALTH = {"startupSeconds": 120.0, "progressSeconds": PROGRESS_SECONDS, "rankRestarts": 3}
_MARGIN_SECONDS = 60.0
"""Of a machine that may stand still for a while; without the clock nothing ever ends."""


def hung(pod: Pod) -> Termination:
    """How it ends, within its clock from now on."""
    mark = time.monotonic()
    code, termination = pod.end()
    print(f"{time.monotonic() - mark:.1f} s: {termination.message}")
    assert time.monotonic() - mark < PROGRESS_SECONDS + _MARGIN_SECONDS
    assert (code, termination.reason) == (ExitCode.HUNG, "Hung")
    assert f"no progress for {PROGRESS_SECONDS:g} s" in termination.message
    return termination


def assert_goes_on(training: TrainingRun, undisturbed: Samples, **changes: Any) -> None:
    """The next attempt resumes from the newest commit that there is, and completes the run."""
    newest = training.commits()[-1].step
    start = training.complete(**changes).resumed_from
    assert start is not None
    assert start.step == newest >= EVERY
    assert training.samples() == undisturbed


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.e2e)])
def test_a_stopped_rank(training: TrainingRun, undisturbed: Samples, rank: int) -> None:
    """SIGSTOP in the middle of training, as from a debugger or a frozen container."""
    with training.attempt(health=HEALTH) as pod:
        strike(pod, signal.SIGSTOP, training.is_under_way, rank)
        termination = hung(pod)
    assert termination.rank == rank
    assert termination.message.startswith(f"rank {rank}: ")
    assert termination.message.endswith("the process is stopped")
    assert "hread" in termination.traceback, "where it stood"
    assert_goes_on(training, undisturbed)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "where",
    [f"step-{2 * EVERY:08d}/__1_", f"step-{STEPS:08d}/__1_", f"step-{STEPS:08d}/"],
    ids=["for one rank in training", "for one rank at the end", "for all at the end"],
)
def test_a_store_that_hangs_under_a_save(
    training: TrainingRun, undisturbed: Samples, where: str
) -> None:
    """Ranks that wait for it, because another save is due or nothing is left to train, say that the
    store is to blame before they would count as hung."""
    fault = Fault("write", where, "hold")
    with training.attempt(fault, health=HEALTH | {"rankRestarts": 0}) as pod:
        pod.rank()
        mark = time.monotonic()
        code, termination = pod.end()
    print(f"{time.monotonic() - mark:.1f} s: {termination.message}")
    assert time.monotonic() - mark < 2 * PROGRESS_SECONDS + _MARGIN_SECONDS
    assert (code, termination.reason) == (ExitCode.FAILED, "StorageFailed")
    assert "the store" in termination.message
    assert_goes_on(training, undisturbed)


def test_a_data_store_that_hangs(training: TrainingRun, undisturbed: Samples) -> None:
    """In the middle of training, for good: the ranks end before the watchdog has to end them, name
    the shard, and the next attempt goes on from the last commit. The last save that was due may
    have been in flight just then."""
    shard, step = last_shard(training.dataset)
    streams = (StreamSettings(url=f"gated://{training.dataset}", role="data-0"),)
    interval = 3
    often = {"checkpoint_interval_steps": interval, "streams": streams}
    lasting = Fault("read", shard.name, "hold", times=10_000)
    with training.attempt(lasting, health=HEALTH | {"rankRestarts": 0}, **often) as pod:
        pod.rank()
        code, termination = pod.end()
    assert (code, termination.reason) == (ExitCode.FAILED, "DataUnavailable")
    assert shard.name in termination.message
    assert "did not arrive in" in termination.message
    due = (step - 1) // interval * interval
    assert training.steps(1)[-1] in (due - interval, due)
    assert_goes_on(training, undisturbed, streams=streams)


@pytest.mark.e2e
def test_a_request_for_data_that_hangs_is_made_again(
    training: TrainingRun, undisturbed: Samples
) -> None:
    """Once is an accident of the network: nothing is restarted."""
    shard, _ = last_shard(training.dataset)
    streams = (StreamSettings(url=f"gated://{training.dataset}", role="data-0"),)
    with training.attempt(Fault("read", shard.name, "hold"), health=HEALTH, streams=streams) as pod:
        pod.rank()
        code, _ = pod.end()
    assert code == ExitCode.DONE
    assert training.samples() == undisturbed
