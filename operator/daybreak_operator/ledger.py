"""What a run's time went into: every second since it was created, each in one account. Pure.

The operator knows from the cluster when an attempt waited, started, stepped and ended; within the
time between its first step and its end, the trainer knows what was productive. Its accounts travel
in the checkpoint, so what an interruption threw away falls out of them, and is found here as the
rest: wasted.

The sum is exact by construction. Time is counted in whole seconds from where the last entry ended
(`accounted_until`), and borders that clocks of other machines give are kept within that interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import AttemptStatus, LedgerStatus, Phase
from daybreak_trainer.contract import rfc3339

STARTUP, RUNNING, STOPPING = "startup", "running", "stopping"
_HELD = (STARTUP, RUNNING, STOPPING)
_NAMED = ("data_wait", "checkpoint", "evaluation", "export")
"""Accounts of the trainer that lie between the first step and the end. Its start-up, restore and
compile lie before, in ours."""
WASTED = "wasted"
_NOT_IN_GOODPUT = ("queue", "suspended", "preparation")
_WITHOUT_ATTEMPT: dict[Phase, str] = {
    "Pending": "queue",
    "Queued": "queue",
    "Preparing": "preparation",
    "Suspended": "suspended",
}
"""Every other phase without an attempt at work is between attempts: restart."""


def account(
    run: TrainingRun,
    before: AttemptStatus | None,
    after: AttemptStatus | None,
    trainer: Mapping[str, float] | None,
    now: datetime,
) -> LedgerStatus:
    """The stored ledger, carried on until `now`.

    `before` is the attempt that is stored; `after` the one that is about to be: the same with what
    was just seen of it, or its successor. `trainer` is what worker 0 last said of the whole run's
    seconds, by account; None where it said nothing new.
    """
    old = run.status.ledger or LedgerStatus()
    start = _whole(_parse(old.accounted_until) if old.accounted_until else run.created)
    end = max(start, _whole(now))
    same = before is not None and after is not None and before.number == after.number
    seconds: Counter[str] = Counter()
    device_seconds = old.device_seconds
    for attempt, border, until in _parts(before, after, same, start, end):
        spent = _attempt_seconds(attempt, _gap(run.status.phase), border, until)
        seconds.update(spent)
        if attempt is not None:
            held = sum(spent[account] for account in _HELD)
            device_seconds += held * attempt.nodes * attempt.devices_per_node
    lost = Counter(old.lost_seconds)
    lost.update({name: count for name, count in seconds.items() if name != RUNNING})
    productive = _split_running(lost, old.productive_seconds, seconds[RUNNING], trainer or {})
    counted = productive + sum(lost.values()) - sum(lost[name] for name in _NOT_IN_GOODPUT)
    hours = device_seconds / 3600
    price = run.spec.budget.gpu_hour_price
    return LedgerStatus(
        goodput=f"{productive / counted:.3f}" if counted else "0",
        gpu_hours=f"{hours:.2f}",
        cost=f"{hours * float(price):.2f}" if price is not None else None,
        productive_seconds=productive,
        lost_seconds={name: count for name, count in sorted(lost.items()) if count},
        held_seconds=old.held_seconds + sum(seconds[account] for account in _HELD),
        device_seconds=device_seconds,
        accounted_until=rfc3339(end, "seconds"),
    )


def _parts(
    before: AttemptStatus | None,
    after: AttemptStatus | None,
    same: bool,
    start: datetime,
    end: datetime,
) -> Iterator[tuple[AttemptStatus | None, datetime, datetime]]:
    """The interval, cut where one attempt follows another."""
    if same or after is None:
        yield (after if same else before), start, end
        return
    cut = _within(_parse(after.created_time), start, end)
    yield before, start, cut
    yield after, cut, end


def _attempt_seconds(
    attempt: AttemptStatus | None, gap: str, start: datetime, end: datetime
) -> Counter[str]:
    """Whole seconds by account; an attempt queues, starts, runs, is over, and its pods go."""
    if attempt is None:
        return Counter({gap: _between(start, end)})
    times = (attempt.created_time, attempt.admitted_time, attempt.first_step_time)
    ended = _parse(attempt.ended_time) if attempt.ended_time else None
    borders = [start]
    for time in times:
        # What has not happened yet, or not before the end, begins at the end.
        at = _parse(time) if time else end
        borders.append(_within(min(at, ended or at), borders[-1], end))
    borders.append(_within(ended or end, borders[-1], end))
    # One that was never admitted has nothing to give back.
    released = _parse(attempt.released_time) if attempt.released_time else end
    held = ended is not None and attempt.admitted_time is not None
    borders.append(_within(released if held else borders[-1], borders[-1], end))
    borders.append(end)
    accounts = (gap, "queue", STARTUP, RUNNING, STOPPING, gap)
    spent: Counter[str] = Counter()
    for name, (since, until) in zip(accounts, pairwise(borders), strict=True):
        spent[name] += _between(since, until)
    return spent


def _split_running(
    lost: Counter[str], productive: int, more: int, trainer: Mapping[str, float]
) -> int:
    """Divides the time between first steps and ends by what the trainer says, the rest is wasted;
    returns the productive seconds."""
    names = [*_NAMED, WASTED]
    total = productive + more + sum(lost[name] for name in names)
    wanted = {name: int(trainer.get(name, lost[name])) for name in _NAMED}
    productive = left = min(total, int(trainer.get("productive", productive)))
    left = total - productive
    for name in _NAMED:
        lost[name] = min(left, wanted[name])
        left -= lost[name]
    lost[WASTED] = left
    return productive


def _gap(phase: Phase) -> str:
    return _WITHOUT_ATTEMPT.get(phase, "restart")


def _parse(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _within(moment: datetime, low: datetime, high: datetime) -> datetime:
    return min(max(_whole(moment), low), high)


def _between(start: datetime, end: datetime) -> int:
    return int((end - start).total_seconds())
