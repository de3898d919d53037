"""A run's life under whatever may happen to it, by the thousand, in a simulated cluster.

What holds at every moment is asserted in `simulated_operator`; here, what holds in the end: when
the disturbances stop, the run ends, or says what it waits for, and leaves nothing behind.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_history import CHARGED_CODES, History, spec_of

POD_ENDS = (*CHARGED_CODES, 143, 75, 137, 65)


def _event(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), values)


KIND = st.sampled_from(["Run", "Job", "Pod"])
NOTHING = st.just(0)
HAPPENING = st.one_of(
    _event("pod_ends", st.tuples(st.integers(0, 2), st.sampled_from(POD_ENDS))),
    _event("out_of_memory", st.integers(0, 1)),
    _event("hang", NOTHING),
    _event("node_down", st.integers(0, 3)),
    _event("node_up", st.integers(0, 3)),
    _event("suspend", st.booleans()),
    _event("scale", st.integers(1, 4)),
    _event("limit", st.sampled_from([{"activeDeadline": "10m"}, {"budget": {"duration": "10m"}}])),
    _event("delete_job", st.sampled_from(["Foreground", "Background", "Orphan"])),
    _event("delete_pod", st.integers(0, 3)),
    _event("evict", NOTHING),
    _event("image", st.booleans()),
    _event("unreachable", st.sampled_from([10, 200])),
    _event("late", st.tuples(KIND, st.sampled_from([3, 30]))),
    _event("relist", KIND),
    _event("repeat", NOTHING),
    _event("touch", NOTHING),
    _event("die", st.integers(0, 4)),
    _event("down", st.sampled_from([5, 60, 400])),
    _event("recreate", NOTHING),
)
EVENTS = st.tuples(st.sampled_from([0, 1, 2, 5, 25, 60, 150]), HAPPENING)
"""Each after some seconds."""
WORLDS = st.fixed_dictionaries(
    {
        "nodes": st.integers(2, 4),
        "queue": st.booleans(),
        "skew": st.sampled_from([0.0, 0.0, -3600.0, 3600.0]),
        "readable_nodes": st.booleans(),
    }
)
WORKERS = st.sampled_from(
    [{"nodes": 1}, {"nodes": 2}, {"nodes": 2, "minNodes": 1}, {"nodes": 2, "maxNodes": 3}]
)


def _live(world: dict[str, Any], workers: dict[str, Any], events: list[tuple[int, Any]]) -> None:
    history = History(spec_of(workers=workers), **world)
    for after_seconds, event in events:
        history.happen(after_seconds, event)
    history.calm()
    history.check()
    history.check_deletion()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(WORLDS, WORKERS, st.lists(EVENTS, max_size=12))
def test_whatever_happens_the_run_ends_and_the_rules_hold(
    world: dict[str, Any], workers: dict[str, Any], events: list[tuple[int, Any]]
) -> None:
    """At most one Job, no name twice, no charge for interruptions nor beyond the budget, a ledger
    that adds up, an end within bounded time, and nothing left after deletion."""
    _live(world, workers, events)


@pytest.mark.e2e
@pytest.mark.timeout(3600)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
@given(WORLDS, WORKERS, st.lists(EVENTS, max_size=30))
def test_thousands_of_histories(
    world: dict[str, Any], workers: dict[str, Any], events: list[tuple[int, Any]]
) -> None:
    """The same, longer and more often."""
    _live(world, workers, events)
