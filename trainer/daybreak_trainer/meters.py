"""What this rank measures of its steps, and where the figures go: metrics and the log."""

from __future__ import annotations

import time

from daybreak_trainer.data.batch import Batch
from daybreak_trainer.engine import Engine
from daybreak_trainer.models.flops import SampleFlops
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.telemetry.devices import peak_of
from daybreak_trainer.telemetry.memory import memory_use
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.phases import StepTimer, StepTimes
from daybreak_trainer.telemetry.step_log import StepLog
from daybreak_trainer.telemetry.throughput import Throughput, ThroughputMeter

_SLOW_EVERY_SECONDS = 5.0
"""For what costs a system call to ask."""


class Meters:
    def __init__(self, engine: Engine, timer: StepTimer) -> None:
        self._engine, self._rank, self._timer = engine, engine.rank, timer
        self._metrics = train_metrics()
        self._log = StepLog()
        self._meter = ThroughputMeter(
            engine.rank.world,
            engine.settings.run.compute.activation_checkpointing,
            peak_of(engine.rank.device, engine.dtype),
        )
        self._flops: dict[tuple[int, int], SampleFlops] = {}
        self._own: dict[int, int] = {}
        self._slow = 0.0
        self.last: StepTimes | None = None
        """The newest step whose times are known."""

    def pause(self) -> None:
        """What comes next is measured afresh: training stood still."""
        self._meter.pause()
        self._timer.begin()

    def step(self, batch: Batch, step: int) -> None:
        """Step `step`, on `batch`, ends now."""
        self._own[step] = batch.own
        self._timer.finish(step)
        for times in self._timer.ready():
            self.last = times
            self._metrics.step(images=self._own.pop(times.step), seconds=times.total_seconds)
            self._metrics.speed.phases(times)
        waited = self.last.seconds["data"] if self.last is not None else 0.0
        self._meter.step(
            time.monotonic(), batch.global_size, self._sample_flops(batch.bucket), waited
        )
        if time.monotonic() - self._slow >= _SLOW_EVERY_SECONDS:
            self._slow = time.monotonic()
            self._metrics.speed.memory(self._rank.rank, memory_use(self._rank.device))
            self._metrics.loader.counts(self._engine.counters.read())

    def speed(self) -> Throughput | None:
        return self._meter.throughput()

    def log(self, agreed: Agreed) -> None:
        """Rank 0's line about a step, now and then."""
        speed = self.speed()
        self._log.step(
            agreed.step,
            loss=agreed.loss,
            gradient_norm=agreed.gradient_norm,
            images_per_second=speed.images_per_second if speed is not None else None,
            times=self.last,
        )

    def _sample_flops(self, bucket: tuple[int, int]) -> SampleFlops:
        if bucket not in self._flops:
            self._flops[bucket] = self._engine.sample_flops(*bucket)
        return self._flops[bucket]
