"""Which events want a look at once, which soon, and which none."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.news import SOON_SECONDS, child_pause, run_pause

RUN: dict[str, Any] = {"metadata": {"uid": "u", "resourceVersion": "7", "generation": 1}}


@pytest.mark.parametrize(
    ("event", "metadata", "pause"),
    [
        ("MODIFIED", {}, None),
        (None, {}, None),
        ("MODIFIED", {"resourceVersion": "8"}, SOON_SECONDS),
        ("MODIFIED", {"resourceVersion": "8", "generation": 2}, 0.0),
        ("MODIFIED", {"resourceVersion": "8", "deletionTimestamp": "2026-01-01T00:00:00Z"}, 0.0),
        ("ADDED", {"uid": "another", "resourceVersion": "8"}, 0.0),
        ("DELETED", {}, 0.0),
    ],
)
def test_our_own_write_wakes_nobody_and_what_a_user_wants_does(
    event: str | None, metadata: dict[str, Any], pause: float | None
) -> None:
    assert run_pause(RUN, event, {"metadata": RUN["metadata"] | metadata}) == pause
    assert run_pause(None, event, RUN) == 0.0


def _is(kind: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True"}]}


@pytest.mark.parametrize(
    ("event", "status", "pause"),
    [
        ("ADDED", {"phase": "Pending"}, SOON_SECONDS),
        ("MODIFIED", {"phase": "Running", **_is("Ready")}, SOON_SECONDS),
        ("MODIFIED", {"active": 4, "ready": 3}, SOON_SECONDS),
        ("MODIFIED", {"phase": "Failed"}, 0.0),
        ("MODIFIED", {"phase": "Succeeded"}, 0.0),
        ("MODIFIED", {"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}]}, 0),
        ("MODIFIED", {"phase": "Running", **_is("DisruptionTarget")}, 0.0),
        ("MODIFIED", {"active": 1, "completedIndexes": "0"}, 0.0),
        ("MODIFIED", _is("FailureTarget"), 0.0),
        ("MODIFIED", _is("Complete"), 0.0),
        ("DELETED", {"phase": "Running"}, 0.0),
    ],
)
def test_what_may_end_an_attempt_is_looked_at_now(
    event: str, status: dict[str, Any], pause: float
) -> None:
    assert child_pause(event, {"metadata": {}, "status": status}) == pause


def test_a_child_on_its_way_out_is_looked_at_now() -> None:
    deleted = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {}}
    assert child_pause("MODIFIED", deleted) == 0.0
