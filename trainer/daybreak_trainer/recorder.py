"""Notes what became of finished steps: in journal, ledger, log and progress."""

from __future__ import annotations

import time
from collections.abc import Iterable

from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checks import StepChecks
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.health.non_finite import Verdict
from daybreak_trainer.meters import Meters
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.rank import NonFiniteLossError
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.telemetry.ledger import LedgerFile, LedgerRecord

_LEDGER_EVERY_SECONDS = 5.0


class RollBackError(Exception):
    """Too many steps in a row without a finite gradient."""


class Recorder:
    """A step is known twice: where it is taken, and when all ranks have agreed on it."""

    def __init__(self, context: RunContext, checks: StepChecks, meters: Meters) -> None:
        self._context, self._checks, self._meters = context, checks, meters
        self._ledger_file = LedgerFile(context.settings.work_dir)
        self._ledger_written = 0.0
        self._starts: dict[int, int] = {}
        """Step -> where its global batch began, until all ranks agreed on it."""

    def taken(self, batch: Batch) -> None:
        """This rank has just taken a step on `batch`."""
        self._starts[self._context.step] = batch.whole.start

    def rolled_back(self) -> None:
        """Steps that were not agreed on yet are gone."""
        self._starts.clear()

    def agreed(self, done: Iterable[Agreed]) -> None:
        """All ranks have agreed on these steps, in order.

        Raises:
            RollBackError: too many of them in a row had no finite gradient.
            NonFiniteLossError: they had none again.
        """
        for step in done:
            self._note(step)
            verdict = self._checks.observe(step, self._context.course.index_at(step.step - 1))
            self._context.progress.slow_rank(self._checks.slow_rank)
            if verdict is Verdict.ROLL_BACK:
                limit = self._context.settings.run.health.non_finite_steps
                raise RollBackError(
                    f"{limit} steps in a row without a finite gradient, up to step {step.step}"
                )
            if verdict is Verdict.GIVE_UP:
                raise NonFiniteLossError(self._checks.explanation(step.step))

    def _note(self, agreed: Agreed) -> None:
        context = self._context
        context.journal.append(
            HistoryLine(
                step=agreed.step,
                position=self._starts.pop(agreed.step),
                size=context.course.stage_at(agreed.step - 1).batch_size,
                samples=f"{agreed.signature:016x}",
                loss=agreed.loss,
                world=context.rank.world,
            )
        )
        context.standing.step, context.standing.samples = agreed.step, context.state.samples
        if not agreed.finite:
            context.ledger.step_skipped(agreed.step)
        if context.rank.is_first:
            seconds = context.ledger.seconds()
            self._meters.log(agreed)
            context.progress.step(
                agreed, context.state, context.course, self._meters.speed(), seconds
            )
            if time.monotonic() - self._ledger_written >= _LEDGER_EVERY_SECONDS:
                self.leave_ledger()

    def leave_ledger(self) -> None:
        """For the process that comes after this one, if it dies."""
        context = self._context
        if context.rank.is_first:
            self._ledger_written = time.monotonic()
            self._ledger_file.write(
                LedgerRecord(
                    attempt=context.settings.run.attempt,
                    unix_time=time.time(),
                    seconds=context.ledger.seconds(),
                )
            )

    def left_ledger(self) -> LedgerRecord | None:
        """Of the process before this one, if it left one."""
        return self._ledger_file.read()
