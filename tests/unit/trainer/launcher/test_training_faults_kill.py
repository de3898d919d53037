"""SIGKILL of a rank that trains for real, wherever it meets it: the ranks start again in their
pods, the run completes with the samples of an undisturbed one, and no commit is lost."""

from __future__ import annotations

import signal
import time

import pytest
from storage_faults import Fault
from training_pods import EVERY, STEPS, Samples, TrainingRun, await_beat, strike
from worker_pods import Pod

from daybreak_trainer.checkpoint.layout import COMMIT
from daybreak_trainer.contract import ExitCode
from daybreak_trainer.health.heartbeat import Phase

pytestmark = pytest.mark.training

ONCE = {"health": {"rankRestarts": 1}}
SAVE = f"step-{2 * EVERY:08d}"
_LOST_SECONDS = 30.0
"""Until a pod that has lost the others ends, on a loaded machine; they are given 3 s to speak."""


def assert_restarted(training: TrainingRun, pod: Pod, undisturbed: Samples) -> None:
    """It completes in the same pod."""
    code, termination = pod.end()
    assert code == ExitCode.DONE, termination
    assert termination.progress is not None
    assert termination.progress.restarts == {"RankKilled": 1}
    assert training.commits()[-1].step == STEPS
    assert training.samples() == undisturbed


@pytest.mark.parametrize(
    "fault",
    [
        Fault("write", f"{SAVE}/__1_", "kill", rank=1, round=0),
        pytest.param(
            Fault("closed", f"{SAVE}/__0_", "kill", rank=0, round=0), marks=pytest.mark.e2e
        ),
        pytest.param(
            Fault("open", f"{SAVE}/{COMMIT}", "kill", rank=0, round=0), marks=pytest.mark.e2e
        ),
        pytest.param(
            Fault("closed", f"{SAVE}/{COMMIT}", "kill", rank=0, round=0), marks=pytest.mark.e2e
        ),
    ],
    ids=["while it writes", "between its files", "before COMMIT", "after COMMIT"],
)
def test_in_a_save(training: TrainingRun, undisturbed: Samples, fault: Fault) -> None:
    """What it leaves half written is no checkpoint; what it committed is one."""
    with training.attempt(fault, **ONCE) as pod:
        assert_restarted(training, pod, undisturbed)
    assert training.steps(1) == [EVERY, 2 * EVERY, 3 * EVERY, STEPS]


@pytest.mark.e2e
def test_while_it_restores(training: TrainingRun, undisturbed: Samples) -> None:
    """The commit that it was reading is read once more."""
    with training.attempt(health={"rankRestarts": 0}) as pod:
        strike(pod, signal.SIGKILL, training.is_under_way)
        code, termination = pod.end()
    assert (code, termination.reason) == (ExitCode.KILLED, "RankKilled")
    newest = training.commits()[-1].step
    with training.attempt(Fault("read", ".distcp", "kill", rank=1, round=0), **ONCE) as pod:
        assert_restarted(training, pod, undisturbed)
        assert [event["step"] for event in pod.events("checkpoint_loaded")] == [newest]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_while_it_compiles(training: TrainingRun, undisturbed: Samples) -> None:
    """What the others have compiled until then is in the pod's cache."""
    with training.attempt(compute={"compile": "blocks"}, **ONCE) as pod:
        strike(pod, signal.SIGKILL, lambda beat: beat.phase == Phase.COMPILING)
        assert_restarted(training, pod, undisturbed)


@pytest.mark.e2e
def test_while_it_draws(training: TrainingRun, undisturbed: Samples) -> None:
    """Training is complete and committed: only the images are drawn again."""
    with training.attempt(evaluation={"prompts": ["a three"], "images": 400}, **ONCE) as pod:
        strike(pod, signal.SIGKILL, lambda beat: beat.phase == Phase.EVALUATING)
        assert_restarted(training, pod, undisturbed)
    assert (training.folder / "models/run/samples.png").exists()


@pytest.mark.e2e
def test_again_and_again(training: TrainingRun, undisturbed: Samples) -> None:
    """Without a commit in between, the attempt ends as the crash did after the restarts it has; the
    next goes on from the commit that there was."""
    fault = Fault("write", f"{SAVE}/__1_", "kill", rank=1)
    with training.attempt(fault, health={"rankRestarts": 2}) as pod:
        code, termination = pod.end()
    assert (code, termination.reason, termination.rank) == (ExitCode.KILLED, "RankKilled", 1)
    assert termination.message == (
        "local rank 1 was ended by SIGKILL; ranks were restarted in place 2 times before "
        "(2 × RankKilled; first: local rank 1 was ended by SIGKILL)"
    )
    assert training.steps(1) == [EVERY]
    start = training.complete().resumed_from
    assert start is not None
    assert start.step == EVERY
    assert training.samples() == undisturbed


@pytest.mark.e2e
@pytest.mark.parametrize("victim", [0, 1])
def test_on_one_of_two_nodes(training: TrainingRun, undisturbed: Samples, victim: int) -> None:
    """The ranks of both start again, and meet again."""
    with training.pods(2, **ONCE) as pods:
        strike(pods[victim], signal.SIGKILL, lambda beat: beat.step > EVERY + EVERY // 2, rank=0)
        ended = [pod.end() for pod in pods]
    assert [code for code, _ in ended] == [ExitCode.DONE] * 2, ended
    progress = ended[0][1].progress
    assert progress is not None
    assert progress.restarts == {"RankKilled": 1}
    assert training.samples() == undisturbed


@pytest.mark.e2e
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_is_lost(training: TrainingRun, undisturbed: Samples, victim: int) -> None:
    """The launcher is killed, and its rank with it: the other pod ends soon, and says whose fault
    it was not. The next attempt goes on."""
    with training.pods(2, **ONCE) as pods:
        await_beat(pods[victim], training.is_under_way)
        pods[victim].signal(signal.SIGKILL)
        mark = time.monotonic()
        code, termination = pods[1 - victim].end()
        print(f"{time.monotonic() - mark:.1f} s after it: {termination.message}")
        assert time.monotonic() - mark < _LOST_SECONDS
        known = training.commits()[-1].step
    assert (code, termination.reason) == (ExitCode.FAILED, "PeerLost")
    assert termination.message.startswith(f"worker {victim} is gone")
    start = training.complete().resumed_from
    assert start is not None
    assert start.step == known >= EVERY
    assert training.samples() == undisturbed
