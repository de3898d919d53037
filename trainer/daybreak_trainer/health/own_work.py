"""How long this rank's own work takes, without what it waits for others: the raw figure of
`stragglers`.

In lockstep every rank's step takes as long as the slowest one's, so the wall clock tells nothing.

On a CPU the kernel knows: the time that the training thread ran or was ready to run. Asleep in a
collective it is neither; on a crowded core it is the second. On CUDA a kernel of NCCL spins while
it waits, so no time between events of a step is a rank's own. Instead a fixed computation without
collectives, the same on all ranks, is timed now and then: a step's FLOPs at that speed are the
rank's own work. So a device that was slow from the start has a larger figure than the others, too.

Time in which the rank waited for its own data counts in both cases. On CUDA it counts somewhat too
much: training does not reach the speed of plain matrix products.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

SCHEDSTAT = Path("/proc/thread-self/schedstat")
PROBE_EVERY_STEPS = 10
_PROBES = 5
"""Of which the median counts: communication beside one of them slows it down."""
_PROBE_SIZE = 4096
_PROBE_PRODUCTS = 4
PROBE_FLOPS = 2 * _PROBE_SIZE**3 * _PROBE_PRODUCTS
"""A millisecond on an H100, a thousandth of ten short steps."""


class ThreadWork:
    """For ranks that compute on CPUs; made and asked on the training thread."""

    def __init__(self, schedstat: Path = SCHEDSTAT) -> None:
        # A kernel without it knows only the time that the thread ran.
        self._schedstat = schedstat if schedstat.exists() else None
        self._before = self._busy_seconds()

    def seconds(self, data_wait_seconds: float, flops: float) -> float:
        """Since the last call; `flops` do not matter."""
        now = self._busy_seconds()
        before, self._before = self._before, now
        return now - before + data_wait_seconds

    def _busy_seconds(self) -> float:
        """Running, and waiting for a core; `proc(5)` and the kernel's sched-stats."""
        if self._schedstat is None:
            return time.thread_time()
        running, ready, _ = self._schedstat.read_text().split()
        return (int(running) + int(ready)) / 1e9


class Probe(Protocol):
    """`MatrixProbe` is one."""

    def start(self) -> None:
        """Begins `PROBE_FLOPS` of computation; returns at once."""

    def seconds(self) -> float | None:
        """What the last one took; None while it is not over, or was read before."""


class DeviceWork:
    """For ranks that compute on a CUDA device. Waits for the device once, when it is made: later
    probes are read at the next one."""

    def __init__(self, probe: Probe, first_seconds: float) -> None:
        self._probe = probe
        self._taken = deque([first_seconds], maxlen=_PROBES)
        self._steps = 0

    def seconds(self, data_wait_seconds: float, flops: float) -> float:
        """Of a step in which this rank computed `flops` and waited so long for its own data."""
        if self._steps % PROBE_EVERY_STEPS == 0:
            taken = self._probe.seconds()
            if taken is not None:
                self._taken.append(taken)
            self._probe.start()
        self._steps += 1
        return flops / PROBE_FLOPS * median(self._taken) + data_wait_seconds


class MatrixProbe:
    """Matrix products on a CUDA device's current stream."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        shape = (_PROBE_SIZE, _PROBE_SIZE)
        self._device = device
        self._matrix: Tensor = torch.randn(
            shape, generator=generator, device=device, dtype=torch.bfloat16
        )
        self._product = torch.empty_like(self._matrix)
        self._pending: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def start(self) -> None:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_PROBE_PRODUCTS):
            torch.mm(self._matrix, self._matrix, out=self._product)
        end.record()
        self._pending = start, end

    def seconds(self) -> float | None:
        if self._pending is None:
            return None
        start, end = self._pending
        if not end.query():  # type: ignore[no-untyped-call]
            return None
        self._pending = None
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3

    def first_seconds(self) -> float:
        """Of a probe now, waited for; the best of several, since the first ones are slower."""
        taken = []
        for _ in range(_PROBES):
            self.start()
            torch.cuda.synchronize(self._device)
            seconds = self.seconds()
            assert seconds is not None  # it has been waited for
            taken.append(seconds)
        return min(taken)


def own_work(device: torch.device) -> ThreadWork | DeviceWork:
    """The clock of this rank's device; `seconds(data_wait_seconds, flops)` once a step."""
    if device.type != "cuda":
        return ThreadWork()
    probe = MatrixProbe(device)
    return DeviceWork(probe, probe.first_seconds())
