"""A run's life under whatever may happen to it, by the thousand, in a simulated cluster.

What holds at every moment is asserted in `simulated_operator`; here, what holds in the end: when
the disturbances stop, the run ends, or says what it waits for, and leaves nothing behind.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from simulated_history import CHARGED_CODES, History, spec_of
from simulated_reach import REACHABLE, reached

POD_ENDS = (*CHARGED_CODES, 143, 75, 137, 65)


def _event(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, Any]]:
    return st.tuples(st.just(name), values)


KIND = st.sampled_from(["Run", "Job", "Pod"])
NOTHING = st.just(0)
REFUSABLE = st.sampled_from(["Job", "Job", "ConfigMap", "Service", "NetworkPolicy", "Pod"])
REFUSALS = st.tuples(REFUSABLE, st.sampled_from([20, 90, 300]))
LIMITS = st.sampled_from(
    [
        {"activeDeadline": "10m"},
        {"budget": {"duration": "10m"}},
        {"deadline": "2026-01-01T00:02:30Z"},
    ]
)
HAPPENING = st.one_of(
    *[_event("pod_ends", st.tuples(st.integers(0, 2), st.sampled_from(POD_ENDS)))] * 2,
    _event("out_of_memory", st.integers(0, 1)),
    _event("bad_data", NOTHING),
    _event("hang", NOTHING),
    _event("node_down", st.integers(0, 3)),
    _event("node_up", st.integers(0, 3)),
    *[_event("suspend", st.sampled_from([True, True, False]))] * 2,
    _event("scale", st.integers(1, 4)),
    _event("limit", LIMITS),
    _event("correct", NOTHING),
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
    *[_event("refuse", REFUSALS)] * 2,
)
EVENTS = st.tuples(st.sampled_from([0, 1, 2, 5, 25, 60, 150]), HAPPENING, st.integers(0, 2))
"""Each after some seconds, to one of the runs."""
NEIGHBOURS = st.sampled_from(
    [
        (),
        (),
        (),
        ("plain",),
        ("prepares",),
        ("brief",),
        ("greedy",),
        ("denied",),
        ("plain", "plain"),
        ("plain", "unreadable"),
        ("brief", "greedy"),
    ]
)
WORLDS = st.fixed_dictionaries(
    {
        "nodes": st.integers(2, 4),
        "queue": st.booleans(),
        "skew": st.sampled_from([0.0, 0.0, -3600.0, 3600.0]),
        "readable_nodes": st.booleans(),
        "interleaved": st.booleans(),
        "neighbours": NEIGHBOURS,
        "refused": st.one_of(st.none(), REFUSALS),
    }
)
WORKERS = st.sampled_from(
    [{"nodes": 1}, {"nodes": 2}, {"nodes": 2, "minNodes": 1}, {"nodes": 2, "maxNodes": 3}]
)


SPECS = st.fixed_dictionaries(
    {"workers": WORKERS},
    optional={
        "prepare": st.integers(1, 2),
        "ttlSecondsAfterFinished": st.sampled_from([0, 100]),
        "cleanPodPolicy": st.sampled_from(["All", "None"]),
    },
)


def _live(world: dict[str, Any], spec: dict[str, Any], events: list[tuple[Any, ...]]) -> History:
    history = History(spec_of(**spec), **world)
    for event in events:
        history.happen(*event)
    history.calm()
    history.check()
    history.check_deletion()
    history.check_memory()
    return history


SEEDS = range(11, 21)
"""Of a few histories each: those of one seed are much alike."""
ENOUGH = 3


def test_whatever_happens_the_run_ends_and_the_rules_hold() -> None:
    """At most one Job, no name twice, no charge for interruptions nor beyond the budget, a ledger
    that adds up, an end within bounded time or a condition that names what is waited for, and
    nothing left after deletion. And what histories are to be about, they do come to."""
    counts: Counter[str] = Counter()

    @settings(max_examples=12, database=None, suppress_health_check=list(HealthCheck))
    @given(WORLDS, SPECS, st.lists(EVENTS, min_size=3, max_size=14))
    def live(world: dict[str, Any], spec: dict[str, Any], events: list[tuple[Any, ...]]) -> None:
        counts.update(reached(_live(world, spec, events)))

    for number in SEEDS:
        seed(number)(live)()
    seldom = {what: counts[what] for what in sorted(REACHABLE) if counts[what] < ENOUGH}
    assert not seldom, f"histories hardly ever come to this: {seldom}"


@pytest.mark.e2e
@pytest.mark.timeout(3600)
@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(WORLDS, SPECS, st.lists(EVENTS, max_size=30))
def test_thousands_of_histories(
    world: dict[str, Any], spec: dict[str, Any], events: list[tuple[Any, ...]]
) -> None:
    """The same, longer and more often."""
    _live(world, spec, events)
