"""A store that fails, hangs or is slow costs commits and never training."""

from __future__ import annotations

import threading
import time

import gated_store
import pytest
from gated_store import Rule
from looked_at_clock import LookedAtClock
from saved_run import SHARD, Run, journal

from daybreak_trainer.checkpoint import together
from daybreak_trainer.checkpoint.checkpointer import Checkpointer
from daybreak_trainer.checkpoint.layout import COMMIT, RECIPE
from daybreak_trainer.checkpoint.lineage import Search
from daybreak_trainer.checkpoint.saves import FAILURES_IN_A_ROW
from daybreak_trainer.checkpoint.storage import StorageError


@pytest.mark.parametrize("where", ["__0_0.distcp", ".metadata", "history", RECIPE, COMMIT])
@pytest.mark.parametrize("operation", ["open", "write", "close"])
def test_a_full_disk_costs_a_commit_and_nothing_else(
    run: Run, rules: list[Rule], where: str, operation: gated_store.Operation
) -> None:
    """In the writer's thread, in any file of the save: it is counted and said, the commit before
    stands, training and the next save go on."""
    checkpointer = run.started(1)
    run.save(checkpointer, 1)
    checkpointer.wait()
    rules.append(Rule(operation, where, gated_store.fill))
    run.save(checkpointer, 2)
    (outcome,) = checkpointer.wait()
    assert outcome.commit is None
    assert "No space left on device" in outcome.error
    assert "attempt-0001/step-00000002" in outcome.error
    assert (outcome.failures_in_a_row, outcome.give_up) == (1, False)
    assert checkpointer.latest is not None
    assert checkpointer.latest.step == 1
    assert run.attempt(1).find().commit == checkpointer.latest
    run.save(checkpointer, 3)
    (outcome,) = checkpointer.wait()
    assert outcome.failures_in_a_row == 0
    checkpointer.close()
    assert run.run.folders("attempt-0001") == ["step-00000001", "step-00000003"]
    assert run.resumed(2) == 3


def test_the_loop_is_told_when_to_give_up(run: Run, rules: list[Rule]) -> None:
    """After so many failures in a row; and a save that must succeed raises."""
    checkpointer = run.started(1)
    rules.append(Rule("write", SHARD, gated_store.fill, times=100))
    told = []
    for step in range(1, FAILURES_IN_A_ROW + 1):
        run.save(checkpointer, step)
        told += [outcome.give_up for outcome in checkpointer.wait()]
    assert told == [False] * (FAILURES_IN_A_ROW - 1) + [True]
    with pytest.raises(StorageError, match="No space left"):
        checkpointer.save_now(run.at(9), run.tensors, journal(9))


def test_a_store_that_hangs_is_given_up(
    run: Run, rules: list[Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, for the timeout; until it comes back saves and searches fail at once with the first
    cause, and no save, wait or end of the process hangs with it. When it is back, so are
    commits, also of the step that hung."""
    clock, gate = LookedAtClock(each_look_seconds=0.1), threading.Event()
    monkeypatch.setattr(together, "time", clock)
    rules.append(Rule("write", SHARD, gate.wait))
    checkpointer = run.attempt(1, timeout_seconds=1.0)
    checkpointer.begin(checkpointer.find())
    cause = (
        f"cannot write this rank's part of {run.run.url}/attempt-0001/step-00000001: "
        "the store stands still, nothing moved for 1 s"
    )
    run.save(checkpointer, 1)
    with pytest.raises(StorageError, match=cause):
        checkpointer.save_now(run.at(2), run.tensors, journal(2))
    mark = clock.now
    run.save(checkpointer, 3)
    with pytest.raises(StorageError, match=f"the store has not answered since: {cause}"):
        checkpointer.find()
    checkpointer.close()
    assert clock.now - mark < 1.0
    outcomes = checkpointer.poll()
    assert [outcome.step for outcome in outcomes] == [1, 2, 3]
    assert all(cause in outcome.error for outcome in outcomes)
    assert [outcome.give_up for outcome in outcomes] == [False, False, True]
    gate.set()
    assert eventually_found(checkpointer).commit is None
    assert checkpointer.save_now(run.at(1), run.tensors, journal(1)).step == 1
    assert run.resumed(2) == 1


def eventually_found(checkpointer: Checkpointer) -> Search:
    """What a search finds once the store has answered what was given up."""
    end = time.monotonic() + 60.0
    while True:
        try:
            return checkpointer.find()
        except StorageError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_slow_store_has_all_the_time_it_needs(
    run: Run, rules: list[Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its requests takes most of the timeout, and the save longer than that: what counts is
    that something moves, and the caller can see it."""
    clock, asked = LookedAtClock(), threading.Semaphore(0)
    monkeypatch.setattr(together, "time", clock)

    def slowly() -> None:
        clock.passes(0.7)
        while asked.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may have been under way
            assert asked.acquire(timeout=60.0)

    rules.append(Rule("open", "step-00000001", slowly, times=4))
    checkpointer = run.attempt(1, timeout_seconds=1.0)
    checkpointer.begin(checkpointer.find())
    mark, seen = clock.now, set()
    run.save(checkpointer, 1)
    while not (outcomes := checkpointer.poll()):
        seen.add(checkpointer.moved())
        asked.release()
        time.sleep(0.01)
    assert clock.now - mark > 1.0
    assert outcomes[0].commit is not None
    assert len(seen) > 3


def test_a_removal_that_fails_is_no_failed_save(
    run: Run, rules: list[Rule], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and made up for after the next commit."""
    checkpointer = run.started(1)
    rules.append(Rule("remove", "step-00000001", gated_store.fill))
    for step in range(1, 6):
        run.save(checkpointer, step)
        (outcome,) = checkpointer.wait()
        assert outcome.commit is not None
    checkpointer.close()
    failed = [line for line in caplog.messages if line == "checkpoint_removal_failed"]
    assert len(failed) == 1
    assert run.run.folders("attempt-0001") == [f"step-{n:08d}" for n in (3, 4, 5)]
