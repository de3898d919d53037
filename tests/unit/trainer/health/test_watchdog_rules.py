"""When ranks count as hung, and which one is named."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.health.heartbeat import Beat, Phase
from daybreak_trainer.health.watchdog import Clocks, Elsewhere, Seen, expired, process_state

CLOCKS = Clocks(startup_seconds=100.0, progress_seconds=10.0)


def seen(
    rank: int = 0,
    at: float = 0.0,
    *,
    steps: int = 1,
    step: int = 1,
    phase: str = Phase.STEP,
    state: str = "S",
    detail: str = "",
) -> Seen:
    beat = Beat(rank, 1000 + rank, at, steps + 1, steps, step, phase, detail)
    return Seen(beat, state)


def test_progress_of_any_rank_anywhere_is_progress() -> None:
    """One exports for an hour and counts its images, the others wait for it."""
    waiting = seen(0, at=5.0, phase=Phase.STEP)
    assert expired([waiting], Elsewhere(), 0.0, 14.9, CLOCKS) is None
    hang = expired([waiting], Elsewhere(), 0.0, 15.0, CLOCKS)
    assert hang is not None
    assert (hang.clock, hang.silent_seconds) == ("progress", 10.0)
    busy = seen(1, at=14.0, phase=Phase.EXPORTING)
    assert expired([waiting, busy], Elsewhere(), 0.0, 15.0, CLOCKS) is None
    assert expired([waiting], Elsewhere(True, 14.0), 0.0, 15.0, CLOCKS) is None


def test_the_start_has_its_own_clock() -> None:
    """It is on the longest silence, of any rank on any node, and gives way to the other clock with
    the first step of any."""
    compiling = seen(0, at=20.0, steps=0, step=700, phase=Phase.COMPILING)
    assert expired([compiling], Elsewhere(), 0.0, 119.9, CLOCKS) is None
    hang = expired([compiling], Elsewhere(), 0.0, 120.0, CLOCKS)
    assert hang is not None
    assert hang.message.startswith("no progress for 100 s before the first step; the rank has been")
    assert expired([compiling], Elsewhere(False, 30.0), 0.0, 120.0, CLOCKS) is None
    assert expired([compiling], Elsewhere(True, 115.0), 0.0, 120.0, CLOCKS) is None
    assert expired([compiling], Elsewhere(True, 30.0), 0.0, 120.0, CLOCKS) is not None
    exporting = seen(1, at=115.0, steps=0, phase=Phase.EXPORTING)
    assert expired([compiling, exporting], Elsewhere(), 0.0, 120.0, CLOCKS) is None


def test_ranks_that_have_said_nothing_are_not_judged() -> None:
    """They have just been forked, or have all ended."""
    assert expired([], Elsewhere(), 0.0, 1e9, CLOCKS) is None


def test_the_stopped_process_is_the_culprit() -> None:
    """Whatever the beats say: its peers are victims."""
    behind = seen(0, at=1.0, step=4)
    stopped = seen(1, at=2.0, step=5, state="T")
    hang = expired([behind, stopped], Elsewhere(), 0.0, 60.0, CLOCKS)
    assert hang is not None
    assert hang.local_rank == 1
    assert hang.message.endswith("after step 5 for 58 s, the process is stopped")


def test_the_one_behind_is_the_culprit() -> None:
    """Of those in one step, one that waits for data, for it waits for nobody else, or the one that
    stopped first."""
    ahead = seen(1, at=1.0, step=5)
    reading = seen(2, at=1.5, step=4, phase=Phase.DATA, detail="shard.00007.mds")
    later = seen(3, at=1.2, step=4)
    hang = expired([ahead, later, reading], Elsewhere(), 0.0, 60.0, CLOCKS)
    assert hang is not None
    assert hang.local_rank == 2
    assert "at 'waiting for data' (shard.00007.mds) after step 4" in hang.message
    assert hang.is_alone
    hang = expired([ahead, later, seen(4, at=1.3, step=4)], Elsewhere(), 0.0, 60.0, CLOCKS)
    assert hang is not None
    assert (hang.local_rank, hang.is_alone) == (3, False)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.integers(0, 3), st.sampled_from(list(Phase))), min_size=1
    ),
    st.floats(0, 200),
    st.one_of(st.just(float("-inf")), st.floats(0, 100)),
)
def test_nobody_is_hung_before_a_clock_has_run_out(
    ranks: list[tuple[float, int, Phase]], now: float, elsewhere: float
) -> None:
    """And somebody is as soon as it has: of silence everywhere, as long as the clock that runs."""
    all_seen = [seen(n, at, steps=s, phase=p) for n, (at, s, p) in enumerate(ranks)]
    other = Elsewhere(elsewhere >= 0, elsewhere)
    hang = expired(all_seen, other, 0.0, now, CLOCKS)
    newest = max(0.0, elsewhere, *(at for at, _, _ in ranks))
    late = {Phase.CHECKPOINTING, Phase.EVALUATING, Phase.EXPORTING}
    has_started = elsewhere >= 0 or any(steps or phase in late for _, steps, phase in ranks)
    clock = CLOCKS.progress_seconds if has_started else CLOCKS.startup_seconds
    assert (hang is not None) == (now - newest >= clock)
    if hang is not None:
        assert hang.clock == ("progress" if has_started else "startup")
        assert hang.local_rank in range(len(ranks))


def test_a_process_has_a_state() -> None:
    """This one runs; one that is gone is dead."""
    assert process_state(os.getpid()) == "R"
    assert process_state(2**22 + 1) == "Z"
