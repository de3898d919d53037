"""A rank's own work: what it waits for others is left out, what it waits for a core is not."""

from __future__ import annotations

import time

import torch

from daybreak_trainer.health.own_work import own_work


def test_sleep_is_no_work_and_computing_is() -> None:
    """As in a collective, the thread sleeps; its own data wait is told by the caller."""
    clock = own_work(torch.device("cpu"))
    time.sleep(0.3)
    assert clock.seconds(0.0) < 0.2
    assert 0.5 <= clock.seconds(0.5) < 0.6
    started = time.perf_counter()
    while time.perf_counter() - started < 0.2:
        pass
    # All of the wall clock: running, or ready while another process had the core.
    assert clock.seconds(0.0) > 0.15
