"""A step's time is told by phase, and telling it holds nothing up."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
import torch

from daybreak_trainer.telemetry.phases import PHASES, Phase, StepTimer

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MOST_MICROSECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Device:
    """A GPU's queue as its events show it: what is queued is done when `done_ms` is that far."""

    def __init__(self) -> None:
        self.queued_ms, self.done_ms = 0.0, 0.0
        self.made = 0

    def work(self, ms: float) -> None:
        self.queued_ms += ms

    def event(self) -> Event:
        self.made += 1
        return Event(self)


@dataclass
class Event:
    device: Device
    at: float | None = None

    def record(self) -> None:
        self.at = self.device.queued_ms

    def query(self) -> bool:
        assert self.at is not None
        return self.at <= self.device.done_ms

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query(), "read before the device was there: the host would wait"
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at


def test_on_a_cpu_a_step_is_told_when_it_ends() -> None:
    """Phases add up over micro-batches, those that did not happen are 0, and what is in none of
    them is in the total."""
    clock = Clock()
    timer = StepTimer(CPU, clock)
    clock.wait(50)
    timer.begin()
    with timer.phase("data"):
        clock.wait(1)
    for _ in range(2):
        with timer.phase("forward_backward"):
            clock.wait(2)
    clock.wait(0.5)
    with timer.phase("optimizer"):
        clock.wait(0.25)
    assert timer.ready() == []
    timer.finish(7)
    (times,) = timer.ready()
    assert times.step == 7
    assert times.seconds == {
        "data": 1,
        "transfer": 0,
        "forward_backward": 4,
        "optimizer": 0.25,
        "staging": 0,
    }
    assert times.total_seconds == 5.75
    assert timer.ready() == []


def test_on_a_gpu_a_step_is_told_when_the_device_has_done_it() -> None:
    """Nothing is read before, steps come in order, the host's own waits stay on its clock, and the
    events of read steps are used again."""
    clock, device = Clock(), Device()
    timer = StepTimer(GPU, clock, device.event)
    for step in (1, 2, 3):
        with timer.phase("data"):
            clock.wait(0.125)
        with timer.phase("forward_backward"):
            device.work(300)
        with timer.phase("staging"):
            clock.wait(0.25)
        with timer.phase("optimizer"):
            device.work(50)
        timer.finish(step)
    assert timer.ready() == []
    device.done_ms = 2 * 350
    first, second = timer.ready()
    assert (first.step, second.step) == (1, 2)
    assert first.seconds == {
        "data": 0.125,
        "transfer": 0,
        "forward_backward": 0.3,
        "optimizer": 0.05,
        "staging": 0.25,
    }
    made = device.made
    with timer.phase("optimizer"):
        device.work(1)
    timer.finish(4)
    assert device.made == made
    device.done_ms = device.queued_ms
    assert [times.step for times in timer.ready()] == [3, 4]


def test_phases_do_not_nest() -> None:
    """A second would be counted twice. After an error in a phase the next one is a new one."""
    timer = StepTimer(CPU)
    with (
        pytest.raises(RuntimeError, match="optimizer begins inside phase data"),
        timer.phase("data"),
        timer.phase("optimizer"),
    ):
        pass
    with timer.phase("optimizer"):
        pass


@pytest.mark.parametrize("phase", PHASES)
def test_timing_a_phase_costs_next_to_nothing(phase: Phase) -> None:
    """The best of some rounds, for the machine may be busy with other things."""
    timer, rounds, best = StepTimer(CPU), 2_000, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(rounds):
            with timer.phase(phase):
                pass
        best = min(best, (time.perf_counter() - start) / rounds)
    print(f"{best * 1e6:.2f} µs")
    assert best * 1e6 < MOST_MICROSECONDS
