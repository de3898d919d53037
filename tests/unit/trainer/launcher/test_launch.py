"""The launcher as a process: what it exits with and what its termination message says, whatever
its ranks, its neighbours and the kernel do to it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from urllib.request import urlopen

import pytest
from worker_pods import SECONDS, Pod, make_pod

from daybreak_trainer import contract
from daybreak_trainer.contract import ExitCode, Termination


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = make_pod(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("ranks", "code", "reason", "message"),
    [
        (["complete", "complete"], 0, "Complete", "training is complete"),
        (["lose peer", "segfault"], 139, "RankKilled", "local rank 1 was ended by SIGSEGV"),
        (["killed", "lose peer"], 137, "RankKilled", "local rank 0 was ended by SIGKILL"),
        (["lose peer", "abort"], 134, "RankKilled", "local rank 1 was ended by SIGABRT"),
        (["lose peer", "bad data"], 65, "BadData", "shard 3 is damaged"),
        (["checkpoint at once", "killed"], 75, "Checkpointed", "stopped on request at step 7"),
        (["lose peer", "leave 3"], 3, "RankFailed", "ended with 3 and left no record"),
    ],
)
def test_the_first_cause_is_the_pods_end(
    fork_server: ForkServerContext,
    pod: Pod,
    ranks: list[str],
    code: int,
    reason: str,
    message: str,
) -> None:
    """Exit code and message are those of the rank that began it: not torchrun's 1, not those of a
    rank that only lost its peer. Where one rank says that this stop is committed, the other's death
    changes nothing."""
    pod.start(fork_server, ranks)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (code, reason)
    assert message in termination.message
    assert termination.progress is not None
    assert termination.progress.run_uid == "u"


def test_a_stop_reaches_the_ranks_and_tells_of_their_commit(
    fork_server: ForkServerContext, pod: Pod
) -> None:
    """SIGTERM to PID 1 alone: all ranks commit, the pod exits 75 and names the checkpoint."""
    pod.start(fork_server, ["checkpoint", "checkpoint"])
    pod.rank(), pod.rank()
    pod.signal(signal.SIGTERM)
    ended, termination = pod.end()
    assert (ended, termination.step) == (ExitCode.CHECKPOINTED, 7)
    assert termination.checkpoint is not None
    assert termination.checkpoint.url == "/checkpoints/7"


def test_a_stop_that_no_commit_follows_is_no_checkpoint(
    fork_server: ForkServerContext, pod: Pod
) -> None:
    """Ranks that do not leave within the grace period are killed, and the pod says 143."""
    pod.start(fork_server, ["hang", "hang"])
    pod.rank(), pod.rank()
    pod.signal(signal.SIGTERM)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.TERMINATED, "Terminated")


def test_a_stop_before_the_ranks_heed_one_ends_them(
    fork_server: ForkServerContext, pod: Pod
) -> None:
    """They have nothing to save yet: no grace is spent on them."""
    pod.start(fork_server, ["starting", "starting"])
    pod.rank(), pod.rank()
    pod.signal(signal.SIGTERM)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.TERMINATED, "Terminated")
    assert termination.message.endswith("before a checkpoint of this stop was committed")


def test_a_stop_during_rendezvous_ends_the_pod_at_once(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """It blocks in C++, where no Python handler runs, for up to a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(SECONDS)
        pod = make_pod(tmp_path, node=1, nodes=2, master_port=silent.getsockname()[1])
        try:
            pod.start(fork_server, ["complete", "complete"])
            with silent.accept()[0]:
                pod.signal(signal.SIGTERM)
                ended, termination = pod.end()
        finally:
            pod.close()
    assert (ended, termination.reason) == (ExitCode.TERMINATED, "Terminated")
    assert "before a checkpoint" in termination.message


def test_a_taken_port_is_named(fork_server: ForkServerContext, pod: Pod) -> None:
    """Two workers on one host's network: the second says which address it could not have."""
    address = (pod.environment[contract.ENV_POD_IP], contract.HTTP_PORT)
    with socket.create_server(address):
        pod.start(fork_server, ["complete", "complete"])
        ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "StartFailed")
    assert "cannot serve on {}:{}: ".format(*address) in termination.message
    assert "Address already in use" in termination.message
    assert termination.traceback == ""


def test_a_taken_rendezvous_port_is_said(fork_server: ForkServerContext, pod: Pod) -> None:
    """Another process listens where worker 0's store should."""
    with socket.create_server(("", pod.settings.master_port)):
        pod.start(fork_server, ["complete", "complete"])
        ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "StartFailed")
    assert str(pod.settings.master_port) in termination.message


@pytest.mark.parametrize(
    ("name", "value", "code", "message"),
    [
        (contract.ENV_RUN, "{", ExitCode.BAD_RECIPE, "DAYBREAK_RUN: the whole: Invalid JSON"),
        (contract.ENV_NODE_INDEX, "7", ExitCode.BAD_RECIPE, "DAYBREAK_NODE_INDEX is '7'"),
        (contract.ENV_RECIPE_PATH, "/nowhere", ExitCode.BAD_RECIPE, "recipe /nowhere: "),
        (contract.ENV_WORK_DIR, "/dev/null", ExitCode.FAILED, "work folder /dev/null cannot be"),
    ],
)
def test_what_the_pod_was_given_wrong_is_said(
    fork_server: ForkServerContext,
    pod: Pod,
    name: str,
    value: str,
    code: int,
    message: str,
) -> None:
    """One sentence that names it, no traceback."""
    pod.environment[name] = value
    pod.start(fork_server, ["complete", "complete"])
    ended, termination = pod.end()
    assert (ended, termination.traceback) == (code, "")
    assert message in termination.message


def _sandbox() -> list[str]:
    """A prefix that makes a command PID 1, where the machine can."""
    bwrap = ["bwrap", "--dev-bind", "/", "/", "--proc", "/proc", "--die-with-parent"]
    bwrap += ["--unshare-pid", "--as-pid-1"]
    if shutil.which("bwrap") is None or subprocess.run([*bwrap, "true"]).returncode != 0:
        return []
    return bwrap


def test_a_stop_before_the_imports_are_done_ends_the_pod(tmp_path: Path) -> None:
    """The kernel discards a SIGTERM that PID 1 has no handler for, and the pod would live on until
    it is killed: the handler comes before every import that takes time."""
    pod = make_pod(tmp_path)
    # Stands in for a library on a slow disk: says that its import began, and never ends.
    read, write = os.pipe()
    slow = f"import os, signal\nos.write({write}, b'x')\nwhile True: signal.pause()\n"
    (tmp_path / "yaml.py").write_text(slow)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    info_read, info_write = os.pipe()
    prefix = _sandbox()
    if prefix:
        prefix += ["--info-fd", str(info_write)]
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", "daybreak_trainer.launch"],
        env={**os.environ, **pod.environment, "PYTHONPATH": os.pathsep.join(path)},
        pass_fds=(write, info_write),
    )
    os.close(write)
    os.close(info_write)
    try:
        with open(info_read) as info, open(read, "rb") as started:  # noqa: PTH123 (descriptors)
            assert started.read(1) == b"x"
            number = json.load(info)["child-pid"] if prefix else process.pid
            os.kill(number, signal.SIGTERM)
            assert process.wait(SECONDS) == ExitCode.TERMINATED
    finally:
        process.kill()
        process.wait()
    termination = Termination.decode((tmp_path / "termination").read_text())
    assert termination is not None
    assert (termination.reason, termination.exit_code) == ("Terminated", ExitCode.TERMINATED)


def test_the_pod_is_up_while_it_imports_torch(tmp_path: Path) -> None:
    """That takes a minute on a cold node: probes are answered meanwhile, and a stop ends it."""
    pod = make_pod(tmp_path)
    read, write = os.pipe()
    slow = f"import os, signal\nos.write({write}, b'x')\nwhile True: signal.pause()\n"
    (tmp_path / "torch.py").write_text(slow)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-m", "daybreak_trainer.launch"],
        env={**os.environ, **pod.environment, "PYTHONPATH": os.pathsep.join(path)},
        pass_fds=(write,),
    )
    os.close(write)
    try:
        with open(read, "rb") as started:  # noqa: PTH123 (a descriptor)
            assert started.read(1) == b"x"
        url = f"http://{pod.environment[contract.ENV_POD_IP]}:{contract.HTTP_PORT}/progress"
        with urlopen(url, timeout=SECONDS) as answer:
            assert json.load(answer)["phase"] == "Starting"
        process.terminate()
        assert process.wait(SECONDS) == ExitCode.TERMINATED
    finally:
        process.kill()
        process.wait()
