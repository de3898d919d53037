"""The trainer itself under its launcher: what is lost when a rank is killed is a few seconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from worker_pods import SECONDS, make_pod

from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.layout import COMMIT, Commit, attempt_folder
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ExitCode, StreamSettings
from daybreak_trainer.health.heartbeat import Beat, read
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.recipe import resolve

pytestmark = [pytest.mark.training, pytest.mark.e2e]

STEPS = 120
RECIPE = resolve(
    {"preset": "smoke", "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 8}]}
)


def test_a_killed_rank_costs_seconds(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """The ranks go on from the newest commit in the same pod, the run completes with every step
    once, and its last commit counts the restart."""
    prepare("digits", tmp_path / "data", count=64)
    pod = make_pod(
        tmp_path / "pod",
        recipe=RECIPE,
        streams=(StreamSettings(url=str(tmp_path / "data"), role="data-0"),),
        checkpoint_url=str(tmp_path / "checkpoints"),
        checkpoint_interval_steps=20,
        health={"rankRestarts": 1},
    )
    attempt = Storage(str(tmp_path / "checkpoints" / "run-u" / attempt_folder(1)))
    try:
        pod.start(fork_server, ["train"])
        first = await_beat(pod.folder, lambda beat: beat.step >= 45)
        victim = read(pod.folder / "work", 1)
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
        again = await_beat(pod.folder, lambda beat: beat.pid != first.pid and beat.steps > 0)
        print(f"first step {time.monotonic() - killed:.1f} s after the kill, of {again.step}")
        ended, termination = pod.end()
    finally:
        pod.close()
    assert ended == ExitCode.DONE, termination
    assert 20 < again.step < STEPS
    last = attempt.child(attempt.folders()[-1])
    state = Commit.model_validate_json(last.read(COMMIT)).state
    assert (state.step, state.restarts) == (STEPS, {"RankKilled": 1})
    assert [line.step for line in history.read(last)] == list(range(1, STEPS + 1))


def await_beat(folder: Path, condition: Callable[[Beat], bool]) -> Beat:
    """Rank 0's first beat that meets the condition."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        beat = read(folder / "work", 0)
        if beat is not None and condition(beat):
            return beat
        time.sleep(0.01)
    raise AssertionError("the ranks do not get that far")
