"""The work queue: whose turn it is, and nobody is forgotten or starved."""

from __future__ import annotations

import asyncio

import pytest

from daybreak_operator.workqueue import WorkQueue, back_off_seconds


class Clock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_that_changes_while_it_is_looked_at_is_looked_at_again() -> None:
    """Never by two at once, and once for any number of changes."""
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    assert (await queue.get(), len(queue)) == ("a", 0)
    for _ in range(3):
        queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert len(queue) == 1
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_the_earliest_time_wins() -> None:
    """A later wish does not put off an earlier one, and a change makes both needless."""
    queue: WorkQueue[str] = WorkQueue()
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue.add_after("a", 0.05)
    queue.add_after("a", 60.0)
    assert await queue.get() == "a"
    assert loop.time() - began >= 0.049
    queue.done("a")
    queue.add_after("a", 60.0)
    queue.add_after("a", 0.05)
    assert await queue.get() == "a"
    queue.done("a")
    queue.add_after("a", 0.01)
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    await asyncio.sleep(0.03)
    assert len(queue) == 0


async def test_a_hostile_key_does_not_starve_the_others() -> None:
    """It is added again in every look: others come in their order, and it gets a few looks a
    second."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    looks = []
    others = [f"other-{n}" for n in range(5)]
    for key in ("hostile", *others):
        queue.add(key)
    while len(queue):
        key = await queue.get()
        assert key is not None
        looks.append(key)
        if key == "hostile":
            queue.add(key)
        queue.done(key)
    assert looks[1:6] == others
    assert 10 <= looks.count("hostile") <= 30
    clock.now += 3.0
    queue.add("hostile")
    assert await queue.get() == "hostile"


async def test_new_runs_come_first_and_the_others_get_a_share() -> None:
    """A thousand new runs must neither wait behind news of those that train nor hide them."""
    queue: WorkQueue[str] = WorkQueue()
    for number in range(4):
        queue.add(f"old {number}")
    for number in range(9):
        queue.add(f"new {number}", first=True)
    queue.add("old 0", first=True)
    assert queue.rush
    order = [await queue.get() for _ in range(len(queue))]
    assert not queue.rush
    assert sorted(order[:4]) == ["new 0", "new 1", "new 2", "old 0"]
    assert sorted(order[4:8]) == ["new 3", "new 4", "new 5", "old 1"]
    assert [key for key in order if str(key).startswith("new")] == [f"new {n}" for n in range(9)]
    assert order[-1] == "old 3"


async def test_the_pause_after_failures_has_jitter_and_ends_with_a_success() -> None:
    """Runs that fail together, when the API server is away, do not come back together."""
    queue: WorkQueue[int] = WorkQueue()
    for key in range(20):
        for _ in range(5):
            pause = queue.failed(key)
            assert 0 < pause <= back_off_seconds(5)
    assert len({queue.failed(key) for key in range(20)}) > 10
    queue.succeeded(0)
    assert queue.failed(0) <= back_off_seconds(1)


async def test_ages_tell_a_queue_that_stands_still() -> None:
    """Of what has been waiting longest, and of the look that has taken longest."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    assert queue.oldest_seconds() == queue.longest_look_seconds() == 0
    queue.add("a")
    clock.now += 5
    queue.add("b")
    clock.now += 2
    assert queue.oldest_seconds() == 7
    await queue.get()
    clock.now += 1
    assert (queue.oldest_seconds(), queue.longest_look_seconds()) == (3, 1)
    queue.done("a")
    assert queue.longest_look_seconds() == 0


async def test_a_closed_queue_gives_nothing_away() -> None:
    """All who wait are told, also those who come later, and what waited is not begun."""
    queue: WorkQueue[str] = WorkQueue()
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.close()
    queue.add("a")
    queue.add_after("a", 0.0)
    assert await asyncio.gather(*waiting) == [None] * 3
    assert await queue.get() is None
    full: WorkQueue[str] = WorkQueue()
    full.add("a")
    full.close()
    assert await full.get() is None


@pytest.mark.parametrize("failures", [1, 2, 10, 10_000])
def test_the_back_off_grows_to_a_minute_and_no_further(failures: int) -> None:
    """A run that fails for days is still tried once a minute, and ends no worker of the queue."""
    assert 0.2 <= back_off_seconds(failures) <= 60
    assert back_off_seconds(failures) <= back_off_seconds(failures + 1)
