"""Several runs in one cluster, which want the same nodes or the same names."""

from __future__ import annotations

from simulated_history import History, spec_of


def test_two_runs_that_hold_a_part_of_each_others_nodes_both_come_to_an_end() -> None:
    """They were made at one time, and got a node each of the two that both want."""
    made = History(spec_of(), 2, neighbours=("plain",), interleaved=True)
    made.operator.advance(120)
    statuses = [made.status_of(key) for key in made.specs]
    assert [status["lastFailure"]["reason"] for status in statuses] == ["Unschedulable"] * 2
    made.calm()
    made.check()


def test_a_run_that_never_fits_lets_others_train() -> None:
    """It holds all nodes while it waits for more, gives them back, and has to wait itself."""
    made = History(spec_of(), 3, neighbours=("greedy",), interleaved=True)
    made.calm()
    made.check()
    assert made.status["phase"] == "Complete"


def test_names_that_are_alike_are_not_mixed_up() -> None:
    """Another namespace's run of the same name, and one that is called as the first one's Job."""
    made = History(spec_of(), 6, neighbours=("plain", "plain"))
    made.operator.advance(60)
    assert sorted(made.cluster.jobs) == ["m/r-1", "n/r-1", "n/r-1-1"]
    made.api.delete(("m", "r"))
    made.api.delete(("n", "r-1"))
    made.operator.advance(60)
    assert list(made.cluster.jobs) == ["n/r-1"]
    made.operator.advance(300)
    assert (made.status["phase"], made.status["attempt"]) == ("Complete", 1)
