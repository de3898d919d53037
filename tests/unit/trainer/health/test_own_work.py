"""A rank's own work: what it waits for others is left out, what it waits for a core is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from daybreak_trainer.health.own_work import (
    PROBE_EVERY_STEPS,
    PROBE_FLOPS,
    SCHEDSTAT,
    DeviceWork,
    ThreadWork,
    own_work,
)
from daybreak_trainer.health.stragglers import scores

STEP_FLOPS = 300.0 * PROBE_FLOPS
_TRIES = 20


class Device:
    """Stands for a GPU on which a probe takes so long; it is over when it is asked for."""

    def __init__(self, probe_seconds: float) -> None:
        self.probe_seconds = probe_seconds
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def seconds(self) -> float | None:
        return self.probe_seconds if self.started else None


def test_sleep_is_no_work_and_computing_is() -> None:
    """As in a collective, the thread sleeps; its own data wait is told by the caller."""
    clock = own_work(torch.device("cpu"))

    def after_sleep() -> float:
        time.sleep(0.3)
        return clock.seconds(0.0, STEP_FLOPS)

    def after_computing() -> float:
        """All of the wall clock: running, or ready while another process had the core."""
        started = time.perf_counter()
        while time.perf_counter() - started < 0.2:
            pass
        return clock.seconds(0.0, STEP_FLOPS)

    # A busy machine adds to what one try finds, and one that stands still takes from it.
    assert any(after_sleep() < 0.2 for _ in range(_TRIES))
    waited = [clock.seconds(0.5, STEP_FLOPS) for _ in range(_TRIES)]
    assert 0.5 <= min(waited) < 0.6
    assert any(after_computing() > 0.15 for _ in range(_TRIES))


@pytest.mark.parametrize("schedstat", [SCHEDSTAT, Path("/proc/no-such-file")])
def test_a_kernel_without_statistics_is_no_failure(schedstat: Path) -> None:
    """Some are built without them."""
    clock = ThreadWork(schedstat)
    busy_until = time.thread_time() + 0.05
    while time.thread_time() < busy_until:
        pass
    assert clock.seconds(0.0, STEP_FLOPS) > 0.04


def test_gpus_that_were_slow_from_the_start_or_wait_for_data_have_lower_scores() -> None:
    """In lockstep their steps take as long as those of the others; a device that becomes slow is
    found, too, and one slow probe is not."""
    devices = [Device(0.001), Device(0.002), Device(0.001), Device(0.001), Device(0.001)]
    ranks = [DeviceWork(device, device.probe_seconds) for device in devices]  # type: ignore[arg-type]
    waits = [0.0, 0.0, 0.3, 0.0, 0.0]

    def step() -> list[float]:
        return [rank.seconds(wait, STEP_FLOPS) for rank, wait in zip(ranks, waits, strict=True)]

    assert step() == pytest.approx([0.3, 0.6, 0.6, 0.3, 0.3])
    devices[3].probe_seconds = 0.003
    devices[4].probe_seconds = 0.003
    for _ in range(PROBE_EVERY_STEPS):
        step()
    devices[4].probe_seconds = 0.001
    for _ in range(5 * PROBE_EVERY_STEPS):
        step()
    assert scores(step()) == pytest.approx([1.0, 0.5, 0.5, 1 / 3, 1.0])
    assert devices[0].started == 7
