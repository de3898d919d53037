"""What this rank measures of its steps, and where the figures go: metrics and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from daybreak_trainer.checkpoint.saves import Outcome
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.engine import Engine
from daybreak_trainer.health import self_test
from daybreak_trainer.health.grace import grace_is_short
from daybreak_trainer.health.own_work import own_work
from daybreak_trainer.models.flops import SampleFlops
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.devices import peak_of
from daybreak_trainer.telemetry.memory import memory_use
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.phases import StepTimer, StepTimes
from daybreak_trainer.telemetry.step_log import StepLog
from daybreak_trainer.telemetry.throughput import Throughput, ThroughputMeter

_STEPS_TO_AGREE = 3
"""From a wish at one rank to the step after which all ranks act on it."""
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
        self._flops: dict[tuple[tuple[int, int], int], SampleFlops] = {}
        self._own: dict[int, int] = {}
        self._slow = 0.0
        self._work = own_work(engine.rank.device)
        self._said_short = False
        self.last: StepTimes | None = None
        """The newest step whose times are known."""
        if self._rank.is_first:
            self._describe_text()

    def pause(self) -> None:
        """What comes next is measured afresh: training stood still."""
        self._flops.clear()  # another stage may have other tricks
        self._meter.pause()
        self._timer.begin()
        self._work.seconds(0.0, 0.0)  # what this rank did meanwhile is no step's

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

    def own_work(self, batch: Batch, waited_seconds: float) -> float:
        """Seconds of this rank's own work for an image since the last step; 0 without images."""
        flops = batch.own * self._sample_flops(batch.bucket).model
        seconds = self._work.seconds(waited_seconds, flops)
        return seconds / batch.own if batch.own else 0.0

    def self_test(self, results: Sequence[self_test.Result]) -> None:
        """The figures of the start-up's test."""
        health = self._metrics.health
        health.matmul(self._rank.rank, results[self._rank.rank].compute.tflops * 1e12)
        if self._rank.is_first:
            health.all_gather(min(r.links.gather_bytes_per_second for r in results))
            stored = [result.storage for result in results if result.storage is not None]
            health.storage("write", min(s.write_bytes_per_second for s in stored))
            health.storage("read", min(s.read_bytes_per_second for s in stored))

    def stop_would_take(self, outcome: Outcome, grace_seconds: float) -> None:
        """What a save took says how long a stop would: it, and the steps until all ranks agree."""
        save_seconds = outcome.staging_seconds + outcome.write_seconds
        step_seconds = self.last.total_seconds if self.last is not None else 0.0
        self._metrics.health.stop(save_seconds + _STEPS_TO_AGREE * step_seconds)
        if grace_is_short(save_seconds, grace_seconds) and not self._said_short:
            self._said_short = True
            log.event(
                "grace_too_short",
                level=logging.WARNING,
                save_seconds=round(save_seconds, 2),
                grace_seconds=grace_seconds,
                remedy="raise spec.terminationGracePeriod",
            )

    def speed(self) -> Throughput | None:
        return self._meter.throughput()

    def log(self, agreed: Agreed) -> None:
        """Rank 0's line about a step, now and then."""
        speed = self.speed()
        self._log.step(
            agreed.step,
            loss=agreed.loss,
            parts=agreed.parts,
            gradient_norm=agreed.gradient_norm,
            images_per_second=speed.images_per_second if speed is not None else None,
            times=self.last,
        )

    def _describe_text(self) -> None:
        """What captions are like and cost, before the first step."""
        engine = self._engine
        text, lengths = engine.recipe.text, engine.caption_lengths
        share = self._sample_flops(bucket_size(next(iter(engine.corpus.buckets)))).text_share
        self._metrics.speed.text(
            tokens=lengths.mean if lengths is not None else None,
            cut_ratio=lengths.cut_share if lengths is not None else None,
            flops_ratio=share,
        )
        log.event(
            "text_described",
            encoder=text.path or text.kind,
            precomputed=text.precomputed,
            width=engine.text.hidden_size,
            vocabulary=len(engine.text.tokenizer),
            max_tokens=text.max_tokens,
            padded_lengths=list(engine.text.padding.lengths),
            tokens_per_caption=round(lengths.mean, 2) if lengths is not None else None,
            padded_tokens_per_caption=round(lengths.padded, 2) if lengths is not None else None,
            captions_cut_ratio=round(lengths.cut_share, 4) if lengths is not None else None,
            text_flops_ratio=round(share, 4),
        )

    def _sample_flops(self, bucket: tuple[int, int]) -> SampleFlops:
        step = self._engine.step
        key = (bucket, step.stage)
        if key not in self._flops:
            found = self._engine.sample_flops(*bucket)
            others = self._engine.clean.flops(*bucket) + step.seers_flops(*bucket)
            self._flops[key] = replace(found, frozen=found.frozen + others)
        return self._flops[key]
