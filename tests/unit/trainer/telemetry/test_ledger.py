"""Every second of a run is in one account, and in the right one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.telemetry.ledger import (
    CAUSES,
    PRODUCTIVE,
    Cause,
    Ledger,
    LedgerFile,
    LedgerRecord,
    goodput,
    lost,
    process_started,
)

START = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def spent(ledger: Ledger) -> dict[str, float]:
    return {account: seconds for account, seconds in ledger.seconds().items() if seconds}


def trained(ledger: Ledger, clock: Clock, steps: range, seconds: float = 1.0) -> None:
    for step in steps:
        clock.wait(seconds)
        ledger.step_finished(step)


def test_the_life_of_an_attempt() -> None:
    """The process's start counts from before the ledger was made, waiting for data is no training,
    and an inner cause is taken out of the outer one."""
    clock = Clock()
    clock.wait(20)
    ledger = Ledger(started=START, clock=clock)
    with ledger.during("restore"):
        clock.wait(5)
    clock.wait(1)
    with ledger.during("compile"):
        clock.wait(8)
    ledger.begin_steps()
    for step in (1, 2):
        with ledger.during("data_wait"):
            clock.wait(0.5)
        clock.wait(2)
        ledger.step_finished(step)
    with ledger.during("evaluation"):
        clock.wait(3)
        with ledger.during("checkpoint"):
            clock.wait(1)
        clock.wait(3)
    assert spent(ledger) == {
        "startup": 21,
        "restore": 5,
        "compile": 8,
        "data_wait": 1,
        "evaluation": 6,
        "checkpoint": 1,
        PRODUCTIVE: 4,
    }
    assert goodput(ledger.seconds()) == pytest.approx(4 / 46)
    assert sum(lost(ledger.seconds()).values()) == 42


def test_a_skipped_step_was_no_training() -> None:
    """It is known a step or two later. Waiting for its data was lost to the data anyway."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.begin_steps()
    trained(ledger, clock, range(1, 3))
    with ledger.during("data_wait"):
        clock.wait(0.5)
    trained(ledger, clock, range(3, 6))
    ledger.step_skipped(3)
    ledger.step_skipped(3)
    assert spent(ledger) == {PRODUCTIVE: 4, "skipped": 1, "data_wait": 0.5}


def test_what_is_rolled_back_was_lost_and_what_is_committed_was_not() -> None:
    """From the commit at step 3 on, the step that had begun included; a skipped step stays one."""
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.begin_steps()
    trained(ledger, clock, range(1, 7))
    ledger.committed(3)
    ledger.step_skipped(5)
    clock.wait(0.25)
    ledger.rolled_back(3)
    assert spent(ledger) == {PRODUCTIVE: 3, "rolled_back": 2.25, "skipped": 1}
    trained(ledger, clock, range(4, 6))
    assert spent(ledger)[PRODUCTIVE] == 5
    ledger.rolled_back(0)
    assert spent(ledger)[PRODUCTIVE] == 3, "a commit is not undone"


def test_an_attempt_goes_on_from_the_checkpoint_s_totals() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    clock.wait(4)
    ledger.resumed({PRODUCTIVE: 100.0, "startup": 10.0, "of a later version": 1.0})
    assert spent(ledger) == {PRODUCTIVE: 100, "startup": 14}


def test_what_a_dead_process_trained_after_its_commit_is_known_to_be_lost() -> None:
    """Where its last record can be read. In the same attempt the devices were held in between."""
    committed = {PRODUCTIVE: 100.0, "startup": 10.0, "rolled_back": 1.0}
    last = LedgerRecord(
        attempt=2,
        unix_time=5000.0,
        seconds={**committed, PRODUCTIVE: 130.0, "data_wait": 2.0},
    )
    for attempt, between in ((2, 6.0), (3, 0.0)):
        ledger = Ledger(clock=Clock())
        ledger.resumed(committed, last, attempt=attempt, started_unix_time=5006.0)
        assert spent(ledger) == {
            PRODUCTIVE: 100,
            "startup": 10 + between,
            "rolled_back": 31,
            "data_wait": 2,
        }


def test_a_record_that_is_older_than_the_commit_takes_nothing_from_it() -> None:
    """It was written three seconds before; the process died six seconds after it."""
    committed = {PRODUCTIVE: 103.0, "startup": 10.0}
    last = LedgerRecord(attempt=2, unix_time=5000.0, seconds={PRODUCTIVE: 100.0, "startup": 10.0})
    ledger = Ledger(clock=Clock())
    ledger.resumed(committed, last, attempt=2, started_unix_time=5006.0)
    assert spent(ledger) == {PRODUCTIVE: 103, "startup": 13}


def test_what_left_nothing_behind_was_all_start() -> None:
    """A process that died before it had resumed: the next one counts from the launcher's start."""
    clock = Clock()
    clock.wait(30)
    ledger = Ledger(started=clock.now, clock=clock)
    clock.wait(4)
    ledger.resumed({PRODUCTIVE: 100.0, "startup": 10.0}, attempt=1, held_since=START)
    assert spent(ledger) == {PRODUCTIVE: 100, "startup": 44}


seconds = st.integers(0, 1000).map(float)
"""Whole seconds: floats add them up exactly."""
events = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), seconds),
        st.tuples(st.just("during"), st.sampled_from(CAUSES)),
        st.tuples(st.just("end"), st.none()),
        st.tuples(st.just("begin_steps"), st.none()),
        st.tuples(st.just("step"), st.none()),
        st.tuples(st.just("skipped"), st.integers(0, 20)),
        st.tuples(st.just("committed"), st.integers(0, 20)),
        st.tuples(st.just("rolled_back"), st.integers(0, 20)),
        st.tuples(st.just("resumed"), seconds),
    ),
    max_size=60,
)


@given(events=events, before=seconds)
def test_no_second_is_lost_or_counted_twice(
    events: list[tuple[str, object]], before: float
) -> None:
    """Whatever happens in whatever order, the accounts add up to the time that has passed since the
    start, and to what the checkpoint brought; none is ever negative."""
    clock = Clock()
    ledger = Ledger(started=START - before, clock=clock)
    brought, step = 0.0, 0
    open_: list[object] = []
    for kind, value in events:
        if kind == "wait":
            assert isinstance(value, float)
            clock.wait(value)
        elif kind == "during":
            cause: Cause = value  # type: ignore[assignment]
            account = ledger.during(cause)
            account.__enter__()
            open_.append(account)
        elif kind == "end" and open_:
            open_.pop().__exit__(None, None, None)  # type: ignore[attr-defined]
        elif kind == "begin_steps":
            ledger.begin_steps()
        elif kind == "step":
            step += 1
            ledger.step_finished(step)
        elif kind == "skipped":
            ledger.step_skipped(int(str(value)))
        elif kind == "committed":
            ledger.committed(int(str(value)))
        elif kind == "rolled_back":
            ledger.rolled_back(int(str(value)))
        elif kind == "resumed":
            assert isinstance(value, float)
            ledger.resumed({PRODUCTIVE: value, "compile": 1.0})
            brought += value + 1
        accounts = ledger.seconds()
        assert sum(accounts.values()) == clock.now - START + before + brought
        assert min(accounts.values()) >= 0
    assert 0 <= goodput(ledger.seconds()) <= 1


rounds = st.lists(
    st.tuples(
        seconds,  # until the process is started
        seconds,  # until it has resumed
        st.booleans(),  # whether it lives to see that
        st.lists(st.sampled_from(["step", "skipped", "commit", "record", "export"]), max_size=12),
    ),
    min_size=1,
    max_size=6,
)


@given(rounds=rounds, brought=seconds)
def test_no_second_of_an_attempt_is_lost_with_its_processes(
    rounds: list[tuple[float, float, bool, list[str]]], brought: float
) -> None:
    """Wherever each of them dies: after every resume the accounts add up to the time since the
    launcher's start, and to what the run had spent before."""
    clock, ahead = Clock(), 1e6  # of Unix time
    committed: dict[str, float] = {PRODUCTIVE: brought}
    last: LedgerRecord | None = None
    for gap, startup, lives, events in rounds:
        clock.wait(gap)
        started = clock.now
        ledger = Ledger(started=started, clock=clock)
        clock.wait(startup)
        if not lives:
            continue
        ledger.resumed(
            committed, last, attempt=1, started_unix_time=started + ahead, held_since=START
        )
        ledger.begin_steps()
        for step, event in enumerate(["record", *events]):
            clock.wait(0.0 if step == 0 else float(1 + step))
            if event == "step":
                ledger.step_finished(step)
            elif event == "skipped":
                ledger.step_finished(step)
                ledger.step_skipped(step)
            elif event == "commit":
                committed = ledger.seconds()
            elif event == "export":
                with ledger.during("export"):
                    clock.wait(3)
            else:
                last = LedgerRecord(
                    attempt=1, unix_time=clock.now + ahead, seconds=ledger.seconds()
                )
            accounts = ledger.seconds()
            assert sum(accounts.values()) == clock.now - START + brought
            assert min(accounts.values()) >= 0


def test_a_process_knows_when_it_was_started() -> None:
    """Also what came before its first line: the interpreter's start."""
    code = (
        "import time; at = time.monotonic()\n"
        "from daybreak_trainer.telemetry.ledger import process_started\n"
        "print(at - process_started())"
    )
    age = float(subprocess.run([sys.executable, "-c", code], stdout=-1, check=True).stdout)
    assert 0 <= age < 30
    own, slack = process_started(), 1.0  # two clocks are read one after the other
    assert process_started(os.getpid()) == pytest.approx(own, abs=slack)
    assert process_started(os.getppid()) <= own + slack


def test_the_file_holds_the_last_record(tmp_path: Path) -> None:
    """Nothing, or half a file of a power cut, is no record."""
    file = LedgerFile(tmp_path)
    assert file.read() is None
    record = LedgerRecord(attempt=1, unix_time=2.0, seconds={PRODUCTIVE: 3.0})
    file.write(record)
    assert file.read() == record
    (tmp_path / "ledger.json").write_text('{"attempt": 1')
    assert file.read() is None
