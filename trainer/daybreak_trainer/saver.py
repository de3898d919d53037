"""When a run saves, what it saves, and what it makes of the outcome."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from daybreak_trainer.checkpoint.due import Due
from daybreak_trainer.checkpoint.layout import TrainState
from daybreak_trainer.checkpoint.saves import Outcome
from daybreak_trainer.checks import StepChecks
from daybreak_trainer.contract import CheckpointRef
from daybreak_trainer.engine import Engine
from daybreak_trainer.health.heartbeat import Phase
from daybreak_trainer.keeper import Keeper
from daybreak_trainer.meters import Meters
from daybreak_trainer.parallel import precision
from daybreak_trainer.parallel.agreement import Agreed
from daybreak_trainer.replan import Replanner
from daybreak_trainer.run_context import RunContext


class Saver:
    """Every method is called by every rank, at the same step, but for `due_by_time`."""

    def __init__(
        self,
        context: RunContext,
        engine: Engine,
        checks: StepChecks,
        planner: Replanner,
        meters: Meters,
    ) -> None:
        run = context.settings.run
        self._context, self._engine = context, engine
        self._checks, self._planner, self._meters = checks, planner, meters
        self._checkpointer = engine.checkpointer
        self._due = Due(run.checkpoint_interval_seconds, run.checkpoint_interval_steps)
        self.keeper = Keeper(engine)
        self.is_owed = False
        """A save is due and not begun yet."""

    def due_by_time(self) -> bool:
        """Whether this rank says so; one of them is asked."""
        return self._due.by_time()

    def after_step(self, done: Iterable[Agreed]) -> None:
        """A step was taken, and all ranks have agreed on `done`: keeps the averages that are due,
        and notes whether a save is."""
        context = self._context
        if self._engine.power is not None:
            with context.ledger.during("checkpoint"), self.counting_bytes():
                self.keeper.after_step(context.state, context.course)
        if self._due.by_steps(context.step) or any(agreed.checkpoint_due for agreed in done):
            self.is_owed = True

    def save(self) -> None:
        """Begins to save, unless gradients are bad just now: the run may have to go back to before
        they were, and a commit of today's weights would be where it finds itself. The last step's
        commit comes when its weights were judged, and holds what they came to."""
        context = self._context
        if self._checks.bad_steps or context.step >= self._planner.last_step(context.course):
            return
        with context.ledger.during("checkpoint"), self.counting_bytes():
            self.keeper.settle(context.state)
            self._checkpointer.save(self._snapshot(), self._engine.tensors(), context.journal)
        self._due.began()
        self.is_owed = False

    def commit(self) -> CheckpointRef:
        """Saves and waits until the commit is real.

        Raises:
            StorageError: it could not be saved; the previous commit stands.
            RanksLostError: a rank is gone.
        """
        context = self._context
        context.heartbeat.enter(Phase.CHECKPOINTING)
        context.progress.phase("Checkpointing")
        with context.ledger.during("checkpoint"), self.counting_bytes():
            self.keeper.settle(context.state)
            self._checkpointer.save_now(self._snapshot(), self._engine.tensors(), context.journal)
        self.heed_outcomes()
        context.progress.phase("Training")
        return self._reference()

    def heed_outcomes(self) -> None:
        """Notes what became of saves; raises StorageError where the store fails again and again."""
        outcomes = self._checkpointer.poll()
        for outcome in outcomes:
            if outcome.commit is not None:
                self._committed(outcome)
            elif self._context.rank.is_first:
                self._context.metrics.checkpoints.failed()
        if outcomes and outcomes[-1].give_up and outcomes[-1].failure is not None:
            raise outcomes[-1].failure

    def _committed(self, outcome: Outcome) -> None:
        context, reference = self._context, self._reference()
        context.ledger.committed(outcome.step)
        self._planner.committed(outcome.staging_seconds + outcome.write_seconds)
        context.standing.checkpoint = reference
        context.progress.committed(reference, outcome)
        if context.rank.is_first:
            self._meters.stop_would_take(outcome, context.settings.run.grace_seconds)

    def keep_last(self) -> None:
        """The averages of the run's end."""
        with self._context.ledger.during("checkpoint"), self.counting_bytes():
            self.keeper.at_end(self._context.state)

    def close(self) -> None:
        """Waits until old checkpoints are removed too, or the store stands still."""
        with self.counting_bytes():
            self._checkpointer.close()

    def counting_bytes(self) -> AbstractContextManager[None]:
        """While ranks wait for a store, what it takes and gives is their progress, and a save that
        is not over is named."""
        checkpointer = self._checkpointer
        return self._context.heartbeat.counting(
            checkpointer.moved, waits_for=checkpointer.waits_for
        )

    def _snapshot(self) -> TrainState:
        ledger = self._context.ledger.seconds()
        return self._context.state.snapshot(
            ledger,
            self._planner.device_seconds(ledger),
            self._checks.bad_steps,
            precision.name(self._engine.dtype),
        )

    def _reference(self) -> CheckpointRef:
        reference = self._checkpointer.reference
        assert reference is not None  # the commit just made
        return reference
