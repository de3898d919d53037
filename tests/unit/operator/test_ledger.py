"""Every second of a run is in one account, whatever clocks say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import AttemptStatus, LedgerStatus, TrainingRunStatus
from daybreak_operator.ledger import account

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def run(**status: Any) -> TrainingRun:
    body = {
        "metadata": {
            "name": "r",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "1",
            "creationTimestamp": at(0),
        },
        "spec": {
            "workers": {"image": "i"},
            "data": {"streams": [{"url": "s3://d"}]},
            "recipe": {"preset": "smoke"},
            "checkpoint": {"storage": "s3://c"},
            "budget": {"gpuHourPrice": "3.60"},
        },
    }
    return replace(TrainingRun.of(body), status=TrainingRunStatus(**status))


def attempt(number: int = 1, created: float = 10, **times: float | None) -> AttemptStatus:
    given = {f"{name}_time": at(t) for name, t in times.items() if t is not None}
    return AttemptStatus(
        number=number, nodes=2, devices_per_node=4, created_time=at(created), **given
    )


def test_an_attempt_queues_starts_runs_and_ends() -> None:
    """And is followed by the pause before the next. It holds its devices from admission until its
    last pod is gone."""
    before = attempt(admitted=30, first_step=50, ended=150, released=157)
    now = START + timedelta(seconds=160)
    trainer = {"productive": 80.0, "checkpoint": 5.5, "data_wait": 2.0}
    found = account(run(phase="Running"), before, before, trainer, now)
    assert found.productive_seconds == 80
    assert found.lost_seconds == {
        "checkpoint": 5,
        "data_wait": 2,
        "queue": 20,
        "restart": 13,
        "startup": 20,
        "stopping": 7,
        "wasted": 13,
    }
    assert (found.held_seconds, found.device_seconds) == (127, 1016)
    assert found.cost == f"{1016 / 3600 * 3.60:.2f}"
    assert found.goodput == f"{80 / 140:.3f}"


def test_what_was_never_admitted_holds_nothing() -> None:
    """Nor while its pods go."""
    before = attempt(ended=50)
    found = account(run(phase="Queued"), before, before, None, START + timedelta(seconds=60))
    assert (found.held_seconds, found.lost_seconds) == (0, {"queue": 60})


def test_what_an_interruption_threw_away_is_wasted() -> None:
    """The trainer's account goes back to that of the commit it resumed from."""
    ledger = LedgerStatus(productive_seconds=100, accounted_until=at(200))
    old, new = attempt(ended=200), attempt(2, 200, admitted=200, first_step=200)
    seen = run(phase="Restarting", ledger=ledger, current_attempt=old)
    found = account(seen, old, new, {"productive": 70.0}, START + timedelta(seconds=205))
    assert (found.productive_seconds, found.lost_seconds["wasted"]) == (70, 35)


def test_a_suspended_run_holds_nothing() -> None:
    """The account follows the phase."""
    over = attempt(admitted=10, first_step=10, ended=20, released=20)
    ledger = LedgerStatus(accounted_until=at(20))
    seen = run(phase="Suspended", ledger=ledger, current_attempt=over)
    found = account(seen, over, over, None, START + timedelta(seconds=95))
    assert (found.lost_seconds, found.held_seconds) == ({"suspended": 75}, 0)


TIMES = st.one_of(st.none(), st.floats(-4000, 8000))


@given(
    st.lists(st.tuples(st.floats(-100, 5000), TIMES, TIMES, TIMES), min_size=1, max_size=6),
    st.sampled_from(["Pending", "Queued", "Running", "Restarting", "Suspended", "Preparing"]),
    st.dictionaries(st.sampled_from(["productive", "checkpoint", "export"]), st.floats(0, 9000)),
)
def test_the_ledger_adds_up_whatever_clocks_say(
    looks: list[tuple[float, float | None, float | None, float | None]],
    phase: Any,
    trainer: dict[str, float],
) -> None:
    """Times of attempts an hour off, a clock of ours that goes back, a trainer that exaggerates."""
    ledger, before = None, None
    for number, (now, admitted, first, ended) in enumerate(looks, 1):
        after = attempt(number, now / 2, admitted=admitted, first_step=first, ended=ended)
        seen = run(phase=phase, ledger=ledger)
        ledger = account(seen, before, after, trainer, START + timedelta(seconds=now))
        until = datetime.fromisoformat(str(ledger.accounted_until))
        wall = int((until - START).total_seconds())
        lost = ledger.lost_seconds.values()
        assert ledger.productive_seconds + sum(lost) == wall
        assert min([ledger.productive_seconds, *lost]) >= 0
        assert ledger.held_seconds <= wall
        assert ledger.device_seconds == 8 * ledger.held_seconds
        before = after
