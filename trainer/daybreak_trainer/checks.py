"""What is looked for in every step that all ranks agreed on. All ranks look at the same values, so
all come to the same verdict at the same step; the first rank tells metrics and log."""

from __future__ import annotations

import logging

from daybreak_trainer.checkpoint.layout import TrainState
from daybreak_trainer.contract import SlowRank
from daybreak_trainer.health import non_finite
from daybreak_trainer.health.non_finite import NonFinite, Verdict
from daybreak_trainer.health.spikes import SpikeDetector
from daybreak_trainer.health.stragglers import Straggler, Stragglers
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.metrics import train_metrics


class StepChecks:
    def __init__(self, rank: Rank, non_finite_limit: int) -> None:
        self._rank, self._limit = rank, non_finite_limit
        self._metrics = train_metrics().health
        self._non_finite = NonFinite()
        self._spikes = SpikeDetector()
        self._stragglers = Stragglers(rank.world)
        self._scores = self._stragglers.scores
        self._stage = -1
        self.slow_rank: SlowRank | None = None
        """The slowest one, while it is persistently slow; on the first rank."""

    def resumed(self, state: TrainState) -> None:
        """An incident shortly before the commit that is gone on from is still the same one."""
        clean = state.step - state.skipped[-1].step if state.skipped else None
        if clean is not None and clean >= non_finite.CLEAN_STEPS:
            clean = None
        self._non_finite = NonFinite(in_a_row=state.bad_steps, clean_steps=clean)

    @property
    def bad_steps(self) -> int:
        """Steps in a row without a finite gradient, up to the last one that was agreed on."""
        return self._non_finite.in_a_row

    def observe(self, agreed: Agreed, stage: int) -> Verdict:
        """What follows from a step of this stage, in the order of steps."""
        if stage != self._stage:
            self._stage = stage
            self._spikes.reset()
        self._look_for_stragglers(agreed)
        spike = self._spikes.observe(agreed.step, agreed.loss)
        if spike is not None and self._rank.is_first:
            self._metrics.loss_spiked()
            log.event(
                "loss_spiked",
                level=logging.WARNING,
                step=spike.step,
                loss=spike.loss,
                typical=spike.typical,
            )
        if not agreed.finite and self._rank.is_first:
            self._metrics.step_skipped()
            log.event("step_skipped", level=logging.WARNING, step=agreed.step, loss=agreed.loss)
        self._non_finite, verdict = non_finite.after(self._non_finite, agreed.finite, self._limit)
        return verdict

    def explanation(self, step: int) -> str:
        """Why the run gives up."""
        return non_finite.explanation(self._non_finite, step)

    def _look_for_stragglers(self, agreed: Agreed) -> None:
        found = self._stragglers.observe([own for (own,) in agreed.by_rank])
        if not self._rank.is_first:
            return
        for straggler in found:
            log.event(
                "straggler_found",
                level=logging.WARNING,
                of_rank=straggler.rank,
                worker=self._rank.workers[straggler.rank],
                score=round(straggler.score, 3),
                seconds_per_image=straggler.seconds,
                typical_seconds_per_image=straggler.typical_seconds,
            )
        if self._stragglers.scores is not self._scores:  # a window ended
            self._scores = self._stragglers.scores
            self._metrics.stragglers({r: 1.0 / score for r, score in enumerate(self._scores)})
            self.slow_rank = self._told_of(self._stragglers.slowest)

    def _told_of(self, straggler: Straggler | None) -> SlowRank | None:
        if straggler is None:
            return None
        rank = straggler.rank
        return SlowRank(
            rank=rank,
            worker=self._rank.workers[rank],
            pod=self._rank.pods[rank] or None,
            ratio=round(1.0 / straggler.score, 3),
        )
