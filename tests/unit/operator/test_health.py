"""Readiness waits for the first lists; liveness tells a dead watch, queue or election."""

from __future__ import annotations

from aiohttp import ClientSession

from daybreak_operator import health
from daybreak_operator.leader import Elector
from daybreak_operator.watches import SERVER_TIMEOUT_SECONDS, SLACK_SECONDS, Watches
from daybreak_operator.workqueue import WorkQueue

RUNS = "/apis/daybreak.dev/v1alpha1/trainingruns"
JOBS, PODS = "/apis/batch/v1/jobs", "/api/v1/pods"
LIST, WATCH = "limit=500", "watch=true&resourceVersion=7"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_list_is_in_when_its_watch_begins() -> None:
    """Of every kind and namespace; an answer to a list alone says nothing of what comes of it."""
    watches = Watches(())
    assert watches.unlisted() == sorted([RUNS, JOBS, PODS])
    for path in (RUNS, JOBS, PODS):
        watches.asked(path, LIST)
        watches.answered(path, LIST, 200)
        assert path in watches.unlisted()
        # Through a proxy, say.
        watches.asked(f"/k8s/clusters/c{path}", WATCH)
        assert path not in watches.unlisted()
    some = Watches(("a", "b"))
    assert len(some.unlisted()) == 6
    some.asked("/api/v1/namespaces/a/pods", WATCH)
    assert len(some.unlisted()) == 5


def test_a_watch_that_asks_no_more_is_dead() -> None:
    """One that asks in vain is not: a new process would not fare better."""
    clock = Clock()
    watches = Watches((), clock)
    for _ in range(20):
        clock.now += SERVER_TIMEOUT_SECONDS
        for path in (RUNS, JOBS, PODS):
            watches.asked(path, WATCH)
            watches.answered(path, WATCH, 200 if path != JOBS else 503)
        assert watches.dead() == []
    assert watches.age_seconds("pods") == 0
    assert watches.age_seconds("jobs") == 20 * SERVER_TIMEOUT_SECONDS
    clock.now += SERVER_TIMEOUT_SECONDS + SLACK_SECONDS
    watches.asked(RUNS, WATCH)
    clock.now += 1
    assert watches.dead() == sorted([JOBS, PODS])


async def test_a_queue_that_stands_still_is_not_healthy() -> None:
    """What waits too long, or is looked at for too long."""
    clock = Clock()
    queue: WorkQueue[tuple[str, str]] = WorkQueue(clock)
    check = health.problems(queue, Watches(()), None)
    queue.add(("n", "r"))
    clock.now += 200
    assert check() == []
    clock.now += 200
    assert check() == ["a run has been waiting to be looked at for 400 s"]
    await queue.get()
    assert check() == []
    clock.now += 200
    assert check() == ["a run has been looked at for 200 s"]


async def test_an_election_whose_task_is_dead_is_not_healthy() -> None:
    """A standby would never lead."""
    elector = Elector(None, "me")  # type: ignore[arg-type]  # never asked
    check = health.problems(WorkQueue(), Watches(()), elector)
    assert check() == []
    elector.attempted_at -= 100
    assert check() == ["the Lease has not been asked for for 100 s"]


async def test_the_pages_say_what_is_wrong() -> None:
    """503 and a sentence; metrics are there all the same."""
    http = await health.serve("127.0.0.1", 0, lambda: [], lambda: ["the list of x is not in"])
    (address, *_) = http.addresses
    try:
        async with ClientSession(f"http://127.0.0.1:{address[1]}") as session:
            async with session.get("/healthz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok\n")
            async with session.get("/readyz") as answer:
                assert (answer.status, await answer.text()) == (503, "the list of x is not in\n")
            async with session.get("/metrics") as answer:
                assert "daybreak_operator_leader" in await answer.text()
    finally:
        await http.cleanup()
