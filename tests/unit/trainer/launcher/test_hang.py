"""Ranks that do not get on: the pod ends within its clock, and says who, where and what for."""

from __future__ import annotations

import os
import re
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

from worker_pods import Pod, make_pod

from daybreak_trainer.contract import ExitCode

_MARGIN_SECONDS = 60.0
"""Of a machine that may stand still for a while; without the clock nothing ever ends."""


def hung_pod(folder: Path, startup: float, progress: float) -> Pod:
    return make_pod(
        folder,
        health={"startupSeconds": startup, "progressSeconds": progress, "rankRestarts": 3},
    )


def test_a_stopped_rank_is_found(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """SIGSTOP, as a debugger or a frozen container does: its peers wait for it and look alike, but
    the kernel tells. No restart in place: the pod is replaced."""
    pod = hung_pod(tmp_path, startup=60.0, progress=1.5)
    try:
        pod.start(fork_server, ["lockstep", "lockstep"])
        ready = [pod.rank(), pod.rank()]
        os.kill(ready[1].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        ended, termination = pod.end()
        assert time.monotonic() - stopped < 1.5 + _MARGIN_SECONDS
        stacks = [(tmp_path / f"work/heartbeats/{rank}.stack").read_text() for rank in (0, 1)]
        victim = next(n for n, stack in enumerate(stacks) if f"rank {n}: " in termination.message)
        beat = (tmp_path / f"work/heartbeats/{victim}.beat").read_bytes()
        assert int.from_bytes(beat[8:16], "little") == ready[1].pid
    finally:
        pod.close()
    assert (ended, termination.reason, termination.rank) == (ExitCode.HUNG, "Hung", victim)
    assert "no progress for 1.5 s; the rank has been at 'step' after step" in termination.message
    assert termination.message.endswith("the process is stopped")
    assert "in lockstep" in termination.traceback
    assert all("in lockstep" in stack for stack in stacks)
    assert termination.step > 0


def test_a_rank_that_goes_round_in_circles_is_found(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """It is alive and says so all the time: that is no progress. What it waits for is named."""
    pod = hung_pod(tmp_path, startup=60.0, progress=1.0)
    try:
        pod.start(fork_server, ["wait for a shard", "wait for a shard"])
        ended, termination = pod.end()
    finally:
        pod.close()
    assert (ended, termination.step) == (ExitCode.HUNG, 1)
    assert "at 'waiting for data' (waiting for shard.00007.mds) after step 1" in termination.message
    assert "in wait_for_a_shard" in termination.traceback


def test_a_start_that_never_ends_is_found(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """No step, and no sign of progress either."""
    pod = hung_pod(tmp_path, startup=1.5, progress=60.0)
    try:
        pod.start(fork_server, ["compile for ever", "compile for ever"])
        ended, termination = pod.end()
    finally:
        pod.close()
    assert ended == ExitCode.HUNG
    said = "no progress for 1.5 s before the first step; the rank has been at 'compiling'"
    assert said in termination.message


def test_a_long_start_is_no_hang(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """The ranks of one node compile for longer than the clock, but count what is done; those of the
    other wait for them, and are silent for longer than the clock, too."""
    health = {"startupSeconds": 2.0, "progressSeconds": 0.5}
    first = make_pod(tmp_path / "0", nodes=2, health=health)
    port = first.settings.master_port
    second = make_pod(tmp_path / "1", node=1, nodes=2, master_port=port, health=health)
    try:
        first.start(fork_server, ["compile long"] * 2)
        second.start(fork_server, ["compile for ever"] * 2)
        ended, termination = second.end()
    finally:
        first.close()
        second.close()
    assert ended == ExitCode.HUNG
    said = re.search(r"no progress for 2 s before .* after step 0 for (\d+) s", termination.message)
    assert said is not None
    assert int(said[1]) >= 4


def test_the_node_of_the_culprit_says_hung(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """All ranks of all nodes stand still; one of them is stopped. Its pod says 76, the other that
    it lost its peers: the operator looks at the right node."""
    health = {"startupSeconds": 60.0, "progressSeconds": 1.5}
    first = make_pod(tmp_path / "0", nodes=2, health=health)
    port = first.settings.master_port
    second = make_pod(tmp_path / "1", node=1, nodes=2, master_port=port, health=health)
    try:
        for pod in (first, second):
            pod.environment["TEST_SHARED"] = str(tmp_path)
            pod.start(fork_server, ["lockstep", "lockstep"])
        ready = [pod.rank() for pod in (first, first, second, second)]
        os.kill(ready[3].pid, signal.SIGSTOP)
        ended, termination = second.end()
        other, lost = first.end()
    finally:
        first.close()
        second.close()
    assert (ended, termination.reason) == (ExitCode.HUNG, "Hung")
    assert (other, lost.reason) == (ExitCode.FAILED, "PeerLost")
    assert lost.message == f"worker 1: {termination.message}"
