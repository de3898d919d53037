"""What a run's worker has to say cannot become Events without end, and none holds up a run."""

from __future__ import annotations

from daybreak_operator.draft import EventNote
from daybreak_operator.eventlog import EventLog

KEY = ("n", "r")


def note(number: int, reason: str = "CheckpointSkipped") -> EventNote:
    return EventNote("Warning", reason, f"message {number}", 1)


def test_a_run_with_something_new_at_each_look_gets_few_events() -> None:
    """A burst, then one in half a minute. What the operator itself has to say is not cut off by
    what a worker says, and another run has its own."""
    seconds = [0.0]
    log = EventLog(lambda: seconds[0])
    written = 0
    for look in range(600):
        seconds[0] = float(look)
        fresh = log.news(KEY, "u", [note(2 * look), note(2 * look + 1)])
        log.recorded(KEY, "u", fresh)
        written += len(fresh)
    assert 8 + 600 / 30 - 2 <= written <= 8 + 600 / 30 + 1
    end = note(1, "RestartLimitExceeded")
    assert log.news(KEY, "u", [*map(note, range(20)), end])[-1] == end
    assert len(log.news(("n", "other"), "v", [note(1)])) == 1


def test_reasons_that_a_worker_makes_up_are_not_remembered_without_end() -> None:
    """A hostile one may name a new one each time."""
    log = EventLog()
    for number in range(1000):
        log.recorded(KEY, "u", log.news(KEY, "u", [note(number, f"Reason{number}")]))
    remembered = log._runs[KEY]
    assert len(remembered.allowances) <= 64
    assert len(remembered.told) <= 257


def test_what_is_on_record_is_no_news_but_to_a_successor() -> None:
    """A run that is made again under the same name is another."""
    log = EventLog()
    log.recorded(KEY, "u", log.news(KEY, "u", [note(1)]))
    assert log.news(KEY, "u", [note(1), note(2)]) == (note(2),)
    assert log.news(KEY, "v", [note(1)]) == (note(1),)
