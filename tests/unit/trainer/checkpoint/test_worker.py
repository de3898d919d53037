"""Whoever waits for a job of a worker can stop waiting, and hears whether it still runs."""

from __future__ import annotations

import threading

import pytest

from daybreak_trainer.checkpoint.worker import Worker

SECONDS = 5.0


def test_jobs_are_done_in_turn() -> None:
    """With their results and errors."""
    worker, order = Worker("test"), list[int]()
    futures = [worker.submit(lambda number=n: order.append(number)) for n in range(50)]
    failing = worker.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(SECONDS)
    assert all(future.done() for future in futures)
    assert order == list(range(50))


@pytest.mark.parametrize("began", [True, False])
def test_a_job_that_is_given_up(began: bool) -> None:
    """The worker hangs until the job has ended, or the one in its way; a job that had not begun
    never does."""
    worker, gate, ran = Worker("test"), threading.Event(), list[str]()
    assert not worker.hangs
    started = threading.Event()
    first = worker.submit(lambda: (started.set(), gate.wait()))
    second = worker.submit(lambda: ran.append("second"))
    assert started.wait(SECONDS)
    worker.give_up(first if began else second)
    assert worker.hangs
    gate.set()
    first.result(SECONDS)
    assert not worker.hangs
    worker.submit(lambda: ran.append("third")).result(SECONDS)
    assert ran == (["second", "third"] if began else ["third"])
    worker.give_up(first)
    assert not worker.hangs, "it had ended"
