"""SIGTERM to a pod whose ranks train for real, wherever it meets them: the pod ends within its
grace period, says truthfully whether this stop was committed, and the next attempt goes on from the
newest commit and completes the run with every step once."""

from __future__ import annotations

import signal
import time

import pytest
from storage_faults import Fault
from training_pods import EVERY, STEPS, Samples, TrainingRun, await_beat
from worker_pods import Pod

from daybreak_trainer.checkpoint.layout import COMMIT
from daybreak_trainer.contract import ExitCode, Termination
from daybreak_trainer.health.heartbeat import Phase

pytestmark = pytest.mark.training

SAVE = f"step-{2 * EVERY:08d}"
_MARGIN_SECONDS = 60.0
"""Of a machine that may stand still for a while; without the grace's end nothing ever ends."""


def stopped(pod: Pod) -> Termination:
    """How it ends after a SIGTERM now, within its grace."""
    pod.signal(signal.SIGTERM)
    mark = time.monotonic()
    code, termination = pod.end()
    seconds = time.monotonic() - mark
    print(f"exit {code} {seconds:.1f} s after SIGTERM: {termination.message}")
    assert seconds < pod.settings.grace_seconds + _MARGIN_SECONDS
    return termination


def assert_without_commit(termination: Termination) -> None:
    assert (termination.exit_code, termination.reason) == (ExitCode.TERMINATED, "Terminated")
    assert "before a checkpoint of this stop was committed" in termination.message


def assert_committed(training: TrainingRun, termination: Termination) -> int:
    """Returns the commit's step. It is the attempt's own, unless the stop came before a step was
    taken: then there is nothing to commit that is not committed."""
    assert termination.exit_code == ExitCode.CHECKPOINTED, termination
    assert termination.checkpoint is not None
    assert termination.message == f"stopped on request at step {termination.checkpoint.step}"
    newest = training.commits()[-1]
    assert newest.step == termination.checkpoint.step
    if newest.attempt != training.attempts:
        assert termination.progress is not None
        resumed = termination.progress.resumed_from
        assert resumed is not None
        assert resumed.step == newest.step
    return newest.step


def assert_goes_on(training: TrainingRun, undisturbed: Samples, step: int | None) -> None:
    """The next attempt resumes after `step` and completes the run as if nothing had been."""
    start = training.complete().resumed_from
    assert (start.step if start is not None else None) == step
    assert training.samples() == undisturbed


def stop_in_a_step(training: TrainingRun) -> int:
    """An attempt that is stopped in the middle of the run; returns the step of its commit."""
    with training.attempt() as pod:
        await_beat(pod, lambda beat: beat.step > EVERY)
        return assert_committed(training, stopped(pod))


def test_in_a_step(training: TrainingRun, undisturbed: Samples) -> None:
    """The steps under way are done, and committed."""
    step = stop_in_a_step(training)
    assert EVERY < step < STEPS
    assert_goes_on(training, undisturbed, step)


@pytest.mark.e2e
@pytest.mark.parametrize("released", [False, True], ids=["for ever", "for a while"])
def test_while_ranks_restore(training: TrainingRun, undisturbed: Samples, released: bool) -> None:
    """From a store that hangs there is nothing to go on with, and the pod ends without a commit; a
    slow one costs time."""
    step = stop_in_a_step(training)
    fault = Fault("read", ".distcp", "hold")
    grace = 60.0 if released else 6.0
    with training.attempt(fault, grace_seconds=grace) as pod:
        pod.rank()
        if released:
            (pod.folder / "released").touch()
            step = assert_committed(training, stopped(pod))
        else:
            assert_without_commit(stopped(pod))
    assert_goes_on(training, undisturbed, step)


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("grace", [6.0, 120.0], ids=["too short", "long enough"])
def test_while_ranks_compile(training: TrainingRun, undisturbed: Samples, grace: float) -> None:
    """Compiling cannot be interrupted: it ends, and the stop is committed, or the time is up."""
    compute = {"compile": "blocks"}
    with training.attempt(compute=compute, grace_seconds=grace) as pod:
        await_beat(pod, lambda beat: beat.phase == Phase.COMPILING)
        termination = stopped(pod)
    if termination.exit_code == ExitCode.CHECKPOINTED:
        assert_goes_on(training, undisturbed, assert_committed(training, termination))
    else:
        assert_without_commit(termination)
        assert_goes_on(training, undisturbed, None)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("write", f"{SAVE}/__1_", "hold"),
        pytest.param(Fault("open", f"{SAVE}/{COMMIT}", "hold"), marks=pytest.mark.e2e),
    ],
    ids=["while it is written", "before COMMIT"],
)
def test_while_a_save_hangs(training: TrainingRun, undisturbed: Samples, fault: Fault) -> None:
    """A save is in flight, and the store does not answer any more: the commit before it stands. The
    message names the save and its place."""
    with training.attempt(fault, grace_seconds=8.0) as pod:
        pod.rank()
        termination = stopped(pod)
        assert_without_commit(termination)
        place = f"{pod.settings.checkpoint_url}/run-u/attempt-0001/{SAVE}"
        assert f"(the save of step {2 * EVERY} in {place})" in termination.message
        assert training.steps(1) == [EVERY]
    assert_goes_on(training, undisturbed, EVERY)


@pytest.mark.e2e
def test_while_a_save_is_slow(training: TrainingRun, undisturbed: Samples) -> None:
    """The save in flight is waited for, and then the stop has its own."""
    with training.attempt(Fault("write", f"{SAVE}/__1_", "hold")) as pod:
        pod.rank()
        pod.signal(signal.SIGTERM)
        (pod.folder / "released").touch()
        step = assert_committed(training, stopped(pod))
    assert training.steps(1)[:2] == [EVERY, 2 * EVERY]
    assert_goes_on(training, undisturbed, step)


@pytest.mark.e2e
@pytest.mark.parametrize("images", [8, 20_000], ids=["few", "more than the grace is for"])
def test_while_images_are_drawn(training: TrainingRun, undisturbed: Samples, images: int) -> None:
    """Training is committed: what is left is done within the grace, or by the next attempt."""
    drawing = {"evaluation": {"prompts": ["a three"], "images": images}, "grace_seconds": 10.0}
    with training.attempt(**drawing) as pod:
        await_beat(pod, lambda beat: beat.phase == Phase.EVALUATING)
        termination = stopped(pod)
        assert training.steps(1)[-1] == STEPS
    if images > 1000:
        assert_without_commit(termination)
    assert_goes_on(training, undisturbed, STEPS)


@pytest.mark.e2e
def test_while_the_model_is_exported(training: TrainingRun, undisturbed: Samples) -> None:
    """To a store that hangs: the next attempt finds the run's last commit, and exports it."""
    fault = Fault("write", "models/run/", "hold", skip=1)
    with training.attempt(fault, grace_seconds=8.0) as pod:
        pod.rank()
        assert_without_commit(stopped(pod))
    assert_goes_on(training, undisturbed, STEPS)
    assert (training.folder / "models/run/daybreak.json").exists()
