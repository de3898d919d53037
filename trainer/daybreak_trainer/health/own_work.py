"""How long this rank's own work takes, without what it waits for others: the raw figure of
`stragglers`.

In lockstep every rank's step takes as long as the slowest one's, so the wall clock tells nothing.

On a CPU the kernel knows: the time that the training thread ran or was ready to run. Asleep in a
collective it is neither; on a crowded core it is the second. On CUDA a kernel of NCCL spins while
it waits, so no time between events of a step is a rank's own. Instead a short fixed computation
without collectives is timed now and then: how much longer it takes than at its best says how much
the device has slowed down, and that share of a step is counted as the rank's own.

Time in which the rank waited for its own data counts in both cases.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_PROBE_EVERY_STEPS = 50
_PROBE_SIZE = 4096
_PROBE_PRODUCTS = 4
"""0.6 TFLOP: a millisecond on an H100, a hundred-thousandth of fifty steps."""


class ThreadWork:
    """For ranks that compute on CPUs; made and asked on the training thread."""

    def __init__(self) -> None:
        self._before = self._busy_seconds()

    def seconds(self, data_wait_seconds: float) -> float:
        """Since the last call."""
        now = self._busy_seconds()
        before, self._before = self._before, now
        return now - before + data_wait_seconds

    def _busy_seconds(self) -> float:
        """Running, and waiting for a core; `proc(5)` and the kernel's sched-stats."""
        running, ready, _ = _SCHEDSTAT.read_text().split()
        return (int(running) + int(ready)) / 1e9


class DeviceWork:
    """For ranks that compute on a CUDA device. Never waits for the device: a probe's time is read
    at the next one."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        shape = (_PROBE_SIZE, _PROBE_SIZE)
        self._matrix: Tensor = torch.randn(
            shape, generator=generator, device=device, dtype=torch.bfloat16
        )
        self._pending: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._best = float("inf")
        self._slowdown = 1.0
        self._steps = 0
        self._at = time.monotonic()

    def seconds(self, data_wait_seconds: float) -> float:
        """Since the last call."""
        now = time.monotonic()
        wall, self._at = now - self._at, now
        if self._steps % _PROBE_EVERY_STEPS == 0:
            self._read()
            self._probe()
        self._steps += 1
        return max(0.0, wall - data_wait_seconds) * self._slowdown + data_wait_seconds

    def _probe(self) -> None:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(_PROBE_PRODUCTS):
            torch.mm(self._matrix, self._matrix)
        end.record()
        self._pending = start, end

    def _read(self) -> None:
        if self._pending is None:
            return
        start, end = self._pending
        if not end.query():  # type: ignore[no-untyped-call]
            return
        taken = start.elapsed_time(end)
        self._best = min(self._best, taken)
        self._slowdown = taken / self._best


def own_work(device: torch.device) -> ThreadWork | DeviceWork:
    """The clock of this rank's device; `seconds(data_wait_seconds)` once a step."""
    return DeviceWork(device) if device.type == "cuda" else ThreadWork()
