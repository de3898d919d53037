"""Which writes of a status wait, for how long, and that nothing is lost meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.decision import Decision, JobRef
from daybreak_operator.pace import Pace

KEY = ("n", "r")
ATTEMPT = {"number": 1, "nodes": 2, "createdTime": "2026-01-01T00:00:00Z"}
ADMITTED = ATTEMPT | {"admittedTime": "2026-01-01T00:00:01Z"}
WORKERS = {"desired": 2, "selector": "daybreak.dev/run=r"}
STARTING: dict[str, Any] = {"phase": "Starting", "attempt": 1, "currentAttempt": ATTEMPT}
RUN = TrainingRun.of(
    {
        "metadata": {
            "name": "r",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "workers": {"image": "i", "nodes": 2},
            "data": {"streams": [{"url": "s3://d"}]},
            "recipe": {"preset": "smoke"},
            "checkpoint": {"storage": "s3://c"},
        },
        "status": STARTING,
    }
)


def _decided(**changes: Any) -> Decision:
    return Decision(TrainingRunStatus.model_validate(STARTING | changes), again_seconds=1.0)


def _degraded(value: str) -> list[dict[str, Any]]:
    since = "2026-01-01T00:00:00Z"
    said = {"status": value, "reason": "R", "message": "", "lastTransitionTime": since}
    return [{"type": "Degraded", **said}]


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({"workers": WORKERS}, 5.0),
        ({"progress": {"step": 3}, "checkpoint": None, "ledger": {"heldSeconds": 3}}, 15.0),
        ({"currentAttempt": ADMITTED}, 15.0),
        ({"phase": "Running", "progress": {"step": 1}}, 5.0),
        ({"phase": "Queued"}, 5.0),
        ({"conditions": _degraded("True")}, 5.0),
        ({"phase": "Restarting"}, 0.0),
        ({"phase": "Complete"}, 0.0),
        ({"currentAttempt": ATTEMPT | {"endedTime": "2026-01-01T00:00:09Z"}}, 0.0),
        ({"attempt": 2, "currentAttempt": ATTEMPT | {"number": 2}}, 0.0),
        ({"restarts": 1}, 0.0),
        ({"nextAttemptTime": "2026-01-01T00:01:00Z"}, 0.0),
        ({}, 0.0),
    ],
)
def test_what_decides_is_written_at_once_and_what_tells_when_its_gap_is_over(
    changes: dict[str, Any], seconds: float
) -> None:
    """The gap counts from the last write, of whatever kind; without one nothing waits."""
    now = [100.0]
    pace, decision = Pace(clock=lambda: now[0]), _decided(**changes)
    assert pace.hold(KEY, RUN, decision) == 0.0
    pace.written(KEY)
    assert pace.hold(KEY, RUN, decision) == seconds
    now[0] += 4.0
    assert pace.hold(KEY, RUN, decision) == max(0.0, seconds - 4.0)
    now[0] += 11.0
    assert pace.hold(KEY, RUN, decision) == 0.0


def test_a_shorter_interval_of_progress_is_that_of_news_too() -> None:
    pace = Pace(2.0, clock=lambda: 0.0)
    pace.written(KEY)
    assert pace.hold(KEY, RUN, _decided(phase="Running")) == 2.0


def test_in_a_rush_progress_waits_longer_and_news_does_not() -> None:
    """New runs' devices stand still until they have their Jobs; afterwards it is as before."""
    now = [100.0]
    pace, progress = Pace(clock=lambda: now[0]), _decided(progress={"step": 3})
    pace.written(KEY)
    now[0] += 20.0
    assert pace.hold(KEY, RUN, progress, rush=True) == 40.0
    assert pace.hold(KEY, RUN, _decided(phase="Running"), rush=True) == 0.0
    assert pace.hold(KEY, RUN, progress) == 0.0


def test_with_something_to_do_all_that_was_kept_is_written() -> None:
    """An Event, a Job to delete: the status does not come later than what follows from it."""
    pace, decision = Pace(clock=lambda: 0.0), _decided(phase="Running")
    pace.written(KEY)
    assert pace.hold(KEY, RUN, replace(decision, delete_jobs=(JobRef("r-1", "job"),))) == 0.0


def test_looks_go_on_from_what_is_kept_until_the_stored_status_is_another() -> None:
    """That all workers have nodes is known though it is not on record yet. A write, somebody else's
    edit and another run of the name end that."""
    pace, decision = Pace(clock=lambda: 0.0), _decided(currentAttempt=ADMITTED)
    assert pace.latest(KEY, RUN) is RUN
    pace.written(KEY)
    for ends in ("written", "edited", "made again"):
        assert pace.hold(KEY, RUN, decision) > 0
        touched = replace(RUN, resource_version="8", generation=2)
        assert pace.latest(KEY, touched) == replace(touched, status=decision.status)
        stored = RUN
        if ends == "written":
            pace.written(KEY)
        elif ends == "edited":
            stored = replace(RUN, status=_decided(attempt=5).status)
        else:
            stored = replace(RUN, uid="another")
        assert pace.latest(KEY, stored) is stored
        assert pace.latest(KEY, RUN) is RUN
