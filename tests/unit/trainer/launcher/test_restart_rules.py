"""Whether a round is followed by another: all launchers see the same ends and decide alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.checkpoint.together import FencedError
from daybreak_trainer.contract import FINAL_EXIT_CODES, ExitCode, Termination
from daybreak_trainer.rank import Standing, failure
from daybreak_trainer.restart import Again, NodeEnd, Over, Restarts, Stalled, decide

CODES = [1, 3, 134, 137, 139, *(code for code in ExitCode)]


def end(code: int, reason: str = "RankKilled", commit_step: int = -1, **more: object) -> NodeEnd:
    termination = Termination(reason=reason, message=f"{reason} {code}", exit_code=code)
    return NodeEnd.model_validate({"termination": termination, "commit_step": commit_step, **more})


LOST = end(1, "PeerLost")
ENDS = st.lists(
    st.one_of(
        st.none(),
        st.builds(
            end,
            st.sampled_from(CODES),
            st.sampled_from(["RankKilled", "PeerLost"]),
            st.integers(-1, 5),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("code", [1, 3, 134, 137, 139])
def test_a_crash_is_followed_by_another_round(code: int) -> None:
    """Whichever node it was on, the cause is told, not its consequence."""
    verdict = decide([LOST, end(code)], Restarts(), budget=1)
    assert isinstance(verdict, Again)
    assert verdict.cause.exit_code == code
    assert verdict.restarts == Restarts(("RankKilled",), f"RankKilled {code}", 1, -1)


@pytest.mark.parametrize("code", [0, 75, 76, 143, *FINAL_EXIT_CODES])
def test_an_end_on_purpose_is_the_end_of_all(code: int) -> None:
    """Also where another node's rank crashed."""
    assert decide([end(code), end(139)], Restarts(), budget=9) == Over()


@pytest.mark.parametrize("reason", ["BadDevice", "StartFailed", "Fenced"])
def test_what_the_same_pod_would_meet_again_is_the_end(reason: str) -> None:
    """Another pod, perhaps on another node, may help."""
    assert decide([end(1, reason)], Restarts(), budget=9) == Over()


def test_a_leftover_is_the_end() -> None:
    """A newer attempt has begun; the record of its ranks says so, and not that the storage failed,
    which may work another time."""
    record = failure(FencedError("attempt 3 has begun"), 0, Standing())
    assert (record.reason, record.message) == ("Fenced", "attempt 3 has begun")
    assert decide([NodeEnd(termination=record)], Restarts(), budget=9) == Over()


def test_nothing_starts_beside_a_rank_that_cannot_be_killed() -> None:
    """It has the device, and may write."""
    assert decide([end(137, left_behind=True), LOST], Restarts(), budget=9) == Over()


def test_a_stop_is_the_end() -> None:
    """Whatever the ranks died of meanwhile."""
    assert decide([end(137), end(137, stopped=True)], Restarts(), budget=9) == Over()


def test_a_silent_node_is_the_end() -> None:
    """Nobody knows what it decided."""
    assert decide([end(137), None], Restarts(), budget=9) == Over()


def test_the_frozen_rank_is_the_culprit_of_a_hang() -> None:
    """Else one that waits for no other rank, else the one that has been silent for longest, on
    whichever node."""
    stalled = [Stalled(silent_seconds=seconds, frozen=False) for seconds in (5.0, 9.0, 7.0)]
    ends = [end(76, "Hung", stalled=each) for each in stalled]
    assert decide(ends, Restarts(), budget=9) == Over(1)
    ends[0] = end(76, "Hung", stalled=Stalled(silent_seconds=5.0, frozen=False, alone=True))
    assert decide(ends, Restarts(), budget=9) == Over(0)
    ends[2] = end(76, "Hung", stalled=Stalled(silent_seconds=1.0, frozen=True))
    assert decide(ends, Restarts(), budget=9) == Over(2)


@given(ENDS, st.integers(0, 3), st.integers(0, 3), st.integers(-1, 5))
def test_restarts_are_counted_against_the_budget(
    ends: list[NodeEnd | None], spent: int, budget: int, commit_step: int
) -> None:
    """A new commit on any node gives it back; never is there one more than allowed."""
    before = Restarts(("RankKilled",) * spent, "first", spent, commit_step)
    verdict = decide(ends, before, budget)
    if not isinstance(verdict, Again):
        return
    newest = max(end.commit_step for end in ends if end is not None)
    assert len(verdict.restarts.causes) == spent + 1
    assert verdict.restarts.since_commit == (1 if newest > commit_step else spent + 1) <= budget
    assert verdict.restarts.commit_step == max(newest, commit_step)
    assert all(e is not None and e.termination.exit_code not in (0, 75, 76) for e in ends)


def test_the_end_tells_of_restarts() -> None:
    """How many, why, and what the first one said."""
    restarts = Restarts(("RankKilled", "TrainerError", "RankKilled"), "by SIGSEGV", 1, 7)
    assert restarts.sentence == (
        "; ranks were restarted in place 3 times before (2 × RankKilled, TrainerError; "
        "first: by SIGSEGV)"
    )
    assert Restarts().sentence == ""
