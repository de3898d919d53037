"""Ranks that crash are started again in their pods, all together; those that end on purpose are
not, and whatever comes in between, the pods end."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from torch._C._distributed_c10d import PrefixStore, TCPStore
from worker_pods import SECONDS, Pod, make_pod

from daybreak_trainer.contract import ExitCode, Termination
from daybreak_trainer.health.heartbeat import HEARTBEATS_FOLDER
from daybreak_trainer.meeting import Meeting, PeersLostError
from daybreak_trainer.restart import NodeEnd
from daybreak_trainer.watch import Patience


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = make_pod(tmp_path, health={"rankRestarts": 2})
    yield made
    made.close()


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[Pod]]:
    """An attempt of two nodes with two ranks each."""
    first = make_pod(tmp_path / "0", nodes=2, health={"rankRestarts": 2})
    port = first.settings.master_port
    second = make_pod(tmp_path / "1", node=1, nodes=2, master_port=port, health={"rankRestarts": 2})
    yield [first, second]
    for made in (first, second):
        made.close()


@pytest.fixture
def other(pod: Pod) -> Meeting:
    """The launcher of a second node, in the test's hands."""
    pod.settings = pod.settings.model_copy(update={"nodes": 2})
    pod.environment["DAYBREAK_RUN"] = pod.settings.to_json()
    return Meeting(pod.settings, 1)


CRASHED = NodeEnd(
    termination=Termination(reason="RankKilled", message="by SIGKILL", exit_code=137)
).to_json()


def test_a_killed_rank_starts_again_with_its_peers(
    fork_server: ForkServerContext, pod: Pod
) -> None:
    """Within moments and told why, as new processes; a later stop commits as ever."""
    pod.start(fork_server, ["checkpoint", "hang|checkpoint"])
    before = [pod.rank(), pod.rank()]
    os.kill(before[0].pid, signal.SIGKILL)
    killed = time.monotonic()
    after = [pod.rank(), pod.rank()]
    print(f"two ranks run again {time.monotonic() - killed:.2f} s after one was killed")
    assert [ready.round for ready in before + after] == [0, 0, 1, 1]
    assert [ready.restarts for ready in after] == [["RankKilled"]] * 2
    assert not {ready.pid for ready in before} & {ready.pid for ready in after}
    pod.signal(signal.SIGTERM)
    assert pod.end()[0] == ExitCode.CHECKPOINTED


def test_ranks_of_all_nodes_start_again_in_one_round(
    fork_server: ForkServerContext, pods: list[Pod]
) -> None:
    """Real collectives over two pods: each crash, wherever, takes all four ranks with it, and all
    four meet again."""
    for pod in pods:
        pod.start(fork_server, ["reduce for ever"] * 2)
    for number, victim in enumerate((1, 0)):
        ready = [[pod.rank(), pod.rank()] for pod in pods]
        assert {rank.round for ranks in ready for rank in ranks} == {number}
        os.kill(ready[victim][0].pid, signal.SIGKILL)
        started = time.monotonic()
    again = [pod.rank() for pod in pods for _ in range(2)]
    print(f"4 gloo ranks on 2 nodes reduce again after {time.monotonic() - started:.2f} s")
    assert {rank.round for rank in again} == {2}
    pods[1].signal(signal.SIGTERM)
    assert [pod.end()[0] for pod in pods] == [ExitCode.CHECKPOINTED] * 2


def test_ranks_that_keep_crashing_end_the_pod_as_the_crash_did(
    fork_server: ForkServerContext, pod: Pod
) -> None:
    """The crash's own code, its message, and what was tried."""
    pod.start(fork_server, ["segfault|killed", "lose peer"])
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.KILLED, "RankKilled")
    assert termination.message == (
        "local rank 0 was ended by SIGKILL; ranks were restarted in place 2 times before "
        "(2 × RankKilled; first: local rank 0 was ended by SIGSEGV)"
    )


def test_a_new_commit_gives_the_budget_back(fork_server: ForkServerContext, pod: Pod) -> None:
    """Four crashes with two restarts allowed, but each round came further than the last."""
    rounds = ["commit and die|" * 4 + "complete", "lose peer|" * 4 + "complete"]
    pod.start(fork_server, rounds)
    assert pod.end()[0] == ExitCode.DONE


@pytest.mark.parametrize(
    ("script", "code"),
    [("bad data", 65), ("leave 75", 75), ("leave 76", 76), ("leave 77", 77), ("leave 93", 93)],
)
def test_an_end_on_purpose_is_the_end(
    fork_server: ForkServerContext, pod: Pod, script: str, code: int
) -> None:
    """Another round would be complete."""
    pod.start(fork_server, [f"{script}|complete", "lose peer|complete"])
    assert pod.end()[0] == code


def test_other_nodes_hear_of_an_end_on_purpose(
    fork_server: ForkServerContext, pods: list[Pod]
) -> None:
    """Ranks that nobody else could wake are ended at once, and their pod says whose fault it was
    not."""
    pods[0].start(fork_server, ["hang", "hang"])
    pods[1].start(fork_server, ["bad data", "lose peer"])
    assert pods[1].end()[0] == ExitCode.BAD_DATA
    ended, termination = pods[0].end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "PeerLost")
    assert termination.message == "a rank of worker 1 ended with 65"


def test_without_worker_0_there_is_no_attempt(
    fork_server: ForkServerContext, pods: list[Pod]
) -> None:
    """Its launcher is killed, and with it its ranks: the others' ranks end, their pods say so."""
    for pod in pods:
        pod.start(fork_server, ["hang", "hang"])
    for pod in pods:
        pod.rank(), pod.rank()
    pods[0].signal(signal.SIGKILL)
    ended, termination = pods[1].end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "PeerLost")
    assert termination.message == "worker 0 is gone: nothing says how its ranks ended"


def test_ranks_that_find_no_store_of_their_own_are_ended(
    fork_server: ForkServerContext, pods: list[Pod]
) -> None:
    """Worker 0 is lost after its node joined and before it serves them: ranks are forked by then,
    and wait at their gate. The pod ends with them and says why it did not start."""
    pod = pods[1]
    run = pod.settings
    store = TCPStore("127.0.0.1", run.master_port, is_master=True, wait_for_workers=False)
    PrefixStore(f"{run.uid}-{run.attempt}", store).set("0/size/0", "2")
    pod.start(fork_server, ["complete", "complete"])
    wait_for_key(pod, "0/size/1")
    while not (pod.folder / "work" / HEARTBEATS_FOLDER).exists():  # all have joined
        time.sleep(0.01)
    del store
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "StartFailed")
    assert termination.message == "worker 0 is gone"


def test_worker_0_says_why_it_serves_no_store(tmp_path: Path) -> None:
    """Not that it is gone itself, which is what the others say of it."""
    meeting = Meeting(make_pod(tmp_path).settings, 0)
    meeting.open(SECONDS)
    meeting.join(0, 2, SECONDS)
    free, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) - 1, most)
    )
    try:
        with pytest.raises(PeersLostError, match=r"worker 0 cannot serve .* on 127\.0\.0\.1: \w+"):
            meeting.ranks_port(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))


def test_a_node_that_does_not_come_back_is_not_waited_for(
    fork_server: ForkServerContext, pod: Pod, other: Meeting
) -> None:
    """It was there a moment ago; its pod is gone, and its end says more."""
    pod.start(fork_server, ["killed", "lose peer"], rejoin=0.5)
    other.open(SECONDS)
    other.join(0, 2, SECONDS)
    other.exchange(0, CRASHED, SECONDS)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "PeerLost")
    assert termination.message.startswith("worker 1 did not join round 1 within 0.5 s; ranks were")


def test_a_stop_between_two_rounds_ends_the_pod(
    fork_server: ForkServerContext, pod: Pod, other: Meeting
) -> None:
    """While it waits for the others to join the next round there is nobody to commit."""
    pod.start(fork_server, ["killed", "lose peer"])
    other.open(SECONDS)
    other.join(0, 2, SECONDS)
    other.exchange(0, CRASHED, SECONDS)
    wait_for_key(pod, "1/size/0")
    pod.signal(signal.SIGTERM)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.TERMINATED, "Terminated")


def test_a_stop_after_a_crash_does_not_hide_it(
    fork_server: ForkServerContext, pod: Pod, other: Meeting
) -> None:
    """While the pod waits to hear how the others ended, how its own ranks did is known."""
    pod.start(fork_server, ["killed", "lose peer"])
    other.open(SECONDS)
    other.join(0, 2, SECONDS)
    wait_for_key(pod, "0/end/0")
    pod.signal(signal.SIGTERM)
    ended, termination = pod.end()
    assert (ended, termination.reason) == (ExitCode.KILLED, "RankKilled")


def test_a_stop_keeps_to_its_grace(
    fork_server: ForkServerContext, pod: Pod, other: Meeting
) -> None:
    """Ranks that do not leave are killed; the others are told at once, and another node that does
    not say how it ended is not waited for as long as after a crash."""
    pod.start(fork_server, ["hang", "hang"])
    other.open(SECONDS)
    other.join(0, 2, SECONDS)
    pod.rank(), pod.rank()
    pod.signal(signal.SIGTERM)
    stopped = time.monotonic()
    ended, termination = pod.end()
    assert time.monotonic() - stopped < Patience().report / 2
    assert (ended, termination.reason) == (ExitCode.TERMINATED, "Terminated")


def test_other_nodes_hear_that_a_stop_has_killed_ranks(
    fork_server: ForkServerContext, pods: list[Pod]
) -> None:
    """They may be in a collective with them, which nothing else would end."""
    for pod in pods:
        pod.start(fork_server, ["hang", "hang"])
    for pod in pods:
        pod.rank(), pod.rank()
    pods[1].signal(signal.SIGTERM)
    assert pods[1].end()[0] == ExitCode.TERMINATED
    ended, termination = pods[0].end()
    assert (ended, termination.reason) == (ExitCode.FAILED, "PeerLost")
    assert termination.message == "ranks of worker 1 were killed by its stop"


def wait_for_key(pod: Pod, key: str) -> None:
    """Until the pod's launcher has said something to the others."""
    run = pod.settings
    store = TCPStore("127.0.0.1", run.master_port, timeout=timedelta(seconds=SECONDS))
    PrefixStore(f"{run.uid}-{run.attempt}", store).wait([key])
