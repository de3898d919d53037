"""A pod's end tells the truth: the first cause, with its own exit code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from daybreak_trainer.contract import ExitCode, Termination
from daybreak_trainer.ending import Ending, RankExit, conclude
from daybreak_trainer.health.memory import oom_kills
from daybreak_trainer.rank import Standing, failure
from daybreak_trainer.restart import NodeEnd, Over, Restarts, decide


def record(reason: str, code: int) -> Termination:
    return Termination(reason=reason, message=reason, exit_code=code)


def exits(*ended: tuple[int, int]) -> Ending:
    """Local rank and code, a second apart."""
    return Ending(tuple(RankExit(4 + n, n, code, float(t)) for t, (n, code) in enumerate(ended)))


def test_done_is_done() -> None:
    """All ranks done: exit 0."""
    records = {0: (1.0, record("Complete", 0)), 1: (1.1, record("Complete", 0))}
    assert conclude(Ending(), records).exit_code == ExitCode.DONE


@pytest.mark.parametrize("code", [64, 65, 75, 77, 1])
def test_the_first_cause_keeps_its_code(code: int) -> None:
    """torchrun would say 1; the rank's own code is what the operator acts on."""
    records = {0: (2.0, record("Later", 1)), 1: (1.0, record("First", code))}
    assert conclude(exits((1, code), (0, 1)), records).exit_code == code


def test_a_lost_peer_explains_nothing() -> None:
    """A rank that only saw its peer vanish does not hide why the peer did."""
    records = {0: (1.0, record("PeerLost", 1))}
    ended = conclude(exits((0, 1), (1, -9)), records)
    assert (ended.exit_code, ended.reason) == (ExitCode.KILLED, "RankKilled")


def test_a_lost_peer_alone_is_said() -> None:
    """Where the cause lies in another pod, this pod says so and exits 1."""
    ended = conclude(exits((0, 1)), {0: (1.0, record("PeerLost", 1))})
    assert (ended.exit_code, ended.reason) == (ExitCode.FAILED, "PeerLost")


@pytest.mark.parametrize(("signal_number", "code"), [(9, 137), (11, 139), (6, 134)])
def test_signals_become_shell_codes(signal_number: int, code: int) -> None:
    """SIGKILL, SIGSEGV and SIGABRT as a container runtime reports them."""
    assert conclude(exits((0, -signal_number)), {}).exit_code == code


def test_a_stop_counts_as_checkpointed_only_if_all_ranks_say_so() -> None:
    """75 where every rank committed for this stop, else 143."""
    done = {0: (1.0, record("Checkpointed", 75)), 1: (1.0, record("Checkpointed", 75))}
    assert conclude(Ending(stopped=True), done).exit_code == ExitCode.CHECKPOINTED
    half = {**done, 1: (1.0, record("TrainerError", 1))}
    ended = conclude(Ending(stopped=True), half)
    assert ended.exit_code == ExitCode.TERMINATED
    assert ended.message.endswith("was committed; TrainerError: TrainerError"), "why there is none"
    assert conclude(Ending(stopped=True), {}).exit_code == ExitCode.TERMINATED


def test_a_stop_that_was_cut_short_says_what_was_left() -> None:
    """Whose store or work took longer than the grace period."""
    ending = Ending(stopped=True, cut_short=True, unfinished="rank 1 was still at 'compiling'")
    ended = conclude(ending, {})
    assert ended.exit_code == ExitCode.TERMINATED
    assert ended.message.endswith("was committed; rank 1 was still at 'compiling'")


def test_a_stop_does_not_hide_what_is_certain() -> None:
    """A run that is complete stays complete, one that can never succeed fails, whoever asked for a
    stop meanwhile: a new attempt would only do it again."""
    done = {0: (1.0, record("Complete", 0)), 1: (1.0, record("Complete", 0))}
    assert conclude(Ending(stopped=True), done).exit_code == ExitCode.DONE
    bad = {0: (2.0, record("PeerLost", 1)), 1: (1.0, record("BadData", 65))}
    assert conclude(Ending(stopped=True), bad).exit_code == ExitCode.BAD_DATA


def test_ranks_that_are_done_are_not_the_gang() -> None:
    """Rank 0 exports while the others are done; where it is killed, the run is not complete."""
    done = {1: (1.0, record("Complete", 0))}
    ended = conclude(Ending(stopped=True, cut_short=True), done)
    assert (ended.exit_code, ended.reason) == (ExitCode.TERMINATED, "Terminated")
    others = Ending(exits((1, 0)).exits, broken="a rank of worker 1 ended with 1", cut_short=True)
    ended = conclude(others, done)
    assert (ended.exit_code, ended.reason) == (ExitCode.FAILED, "PeerLost")


def test_a_rank_that_checkpointed_beside_a_killed_one() -> None:
    """Its commit is the whole gang's, so the state is safe, whatever killed the other after it."""
    committed = {0: (1.0, record("Checkpointed", 75))}
    for ending in (exits((1, -9)), exits((0, 75)), Ending(stopped=True)):
        assert conclude(ending, committed).exit_code == ExitCode.CHECKPOINTED


def test_errors_that_follow_a_killed_rank_are_its_consequence() -> None:
    """A death is noticed a moment after it happened, and leaves no record; an error before that is
    the cause."""
    ending = Ending((RankExit(0, 0, -9, 10.1), RankExit(1, 1, 1, 10.2)))
    after = {1: (10.0, record("TrainerError", 1))}
    assert conclude(ending, after).reason == "RankKilled"
    before = {1: (9.0, record("TrainerError", 1))}
    assert conclude(ending, before).reason == "TrainerError"


def test_ranks_that_others_took_along() -> None:
    """Nothing of this node's began it: the pod says what another said."""
    ended = conclude(Ending(broken="a rank of worker 1 was ended by SIGKILL"), {})
    assert (ended.exit_code, ended.reason) == (ExitCode.FAILED, "PeerLost")
    assert ended.message == "a rank of worker 1 was ended by SIGKILL"


def test_a_hang_is_what_the_watchdog_says() -> None:
    """The ranks say nothing, or that they lost each other when they were killed."""
    hang = Termination(reason="Hung", message="no progress", exit_code=76)
    assert conclude(Ending(hang=hang), {0: (1.0, record("PeerLost", 1))}) == hang


def test_a_stop_tells_what_ranks_died_of() -> None:
    """But not that they died of the stop itself, before they had a handler for it."""
    ended = conclude(Ending((RankExit(0, 0, -11, 1.0),), stopped=True), {})
    assert ended.message.endswith("; RankKilled: local rank 0 was ended by SIGSEGV")
    ended = conclude(Ending((RankExit(0, 0, -15, 1.0),), stopped=True), {})
    assert (ended.exit_code, ended.reason) == (ExitCode.TERMINATED, "Terminated")
    assert ended.message.endswith("was committed")


def test_a_realtime_signal_has_no_name() -> None:
    """And is no traceback."""
    ended = conclude(exits((3, -40)), {})
    assert (ended.exit_code, ended.rank) == (168, 7)
    assert ended.message == "local rank 3 was ended by signal 40"


def test_an_agent_that_fails_after_its_ranks_hides_nothing() -> None:
    """The ranks' own records are worth more than torchrun's trouble at the end."""
    done = {0: (1.0, record("Complete", 0))}
    assert conclude(Ending(problem="barrier"), done).exit_code == ExitCode.DONE


def test_ranks_that_never_started() -> None:
    """The problem is the message."""
    ended = conclude(Ending(problem="DistNetworkError: no route"), {})
    assert (ended.exit_code, ended.message) == (ExitCode.FAILED, "DistNetworkError: no route")


def test_a_rank_that_used_too_much_memory_is_no_mere_crash() -> None:
    """The kernel's kill looks like any other; the pod's cgroup tells them apart."""
    ending = exits((0, -9))
    killed = conclude(replace(ending, oom_killed=True), {})
    assert (killed.exit_code, killed.reason) == (ExitCode.KILLED, "OutOfMemory")
    assert "resources.limits.memory" in killed.message
    crashed = conclude(replace(exits((0, -11)), oom_killed=True), {})
    assert crashed.reason == "RankKilled"


def test_kills_for_memory_are_counted_where_something_counts_them(tmp_path: Path) -> None:
    """cgroup v2; elsewhere there are none."""
    assert oom_kills(tmp_path / "absent") == 0
    (tmp_path / "memory.events").write_text("low 0\nmax 12\noom 2\noom_kill 3\n")
    assert oom_kills(tmp_path / "memory.events") == 3


def test_a_device_out_of_memory_says_what_helps() -> None:
    """And the next round in the same pods would meet it again."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    record = failure(error, 3, Standing())
    assert (record.reason, record.rank) == ("DeviceOutOfMemory", 3)
    assert "compute.deviceBatchSize" in record.message
    assert isinstance(decide([NodeEnd(termination=record)], Restarts(), 3), Over)
