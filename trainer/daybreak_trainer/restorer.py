"""Brings a run to where a commit has it: at the start of a rank, and when gradients went bad."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence

from daybreak_trainer.checkpoint.layout import Commit
from daybreak_trainer.checkpoint.lineage import Search
from daybreak_trainer.checks import StepChecks
from daybreak_trainer.engine import Engine
from daybreak_trainer.health.heartbeat import Phase
from daybreak_trainer.health.non_finite import REMEDY
from daybreak_trainer.parallel import precision
from daybreak_trainer.rank import NonFiniteLossError
from daybreak_trainer.recorder import Recorder
from daybreak_trainer.replan import Replanner
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.saver import Saver
from daybreak_trainer.schedule.carry import carried
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.ledger import process_started


class Restorer:
    """Every method is called by every rank."""

    def __init__(
        self,
        context: RunContext,
        engine: Engine,
        saver: Saver,
        recorder: Recorder,
        checks: StepChecks,
        planner: Replanner,
    ) -> None:
        self._context, self._engine, self._saver = context, engine, saver
        self._recorder, self._checks, self._planner = recorder, checks, planner
        self._checkpointer = engine.checkpointer

    def resume(self, restart_causes: Sequence[str] = ()) -> None:
        """Goes on from the newest good commit of the run's lineage, or from the beginning, which
        may be another run's commit.
        `restart_causes`: why ranks of this attempt were started again, oldest first."""
        context = self._context
        context.heartbeat.enter(Phase.RESTORING)
        with context.ledger.during("restore"), self._saver.counting_bytes():
            search = self._checkpointer.find()
            context.standing.skipped_checkpoints = tuple(search.skipped)
            self._checkpointer.begin(search)
            if (commit := search.commit) is not None:
                self._take_over(commit, search)
            self._saver.keeper.resumed(context.state)
            self._engine.reserve(fresh=commit is None)
        self._resume_accounts(commit)
        same = commit is not None and commit.attempt == context.settings.run.attempt
        context.state.restarted(restart_causes, same)
        if context.rank.is_first and context.state.restarts:
            context.metrics.health.restarts(context.state.restarts)
        origin = self._checkpointer.reference_to(commit) if commit is not None else None
        reference = self._checkpointer.reference
        context.standing.checkpoint = reference
        context.progress.resumed(origin, reference, search.skipped, context.state)
        for found in deque(context.journal.evaluations(), maxlen=1):
            self._planner.evaluated(found.seconds)
            context.progress.validated(found)

    def _take_over(self, commit: Commit, search: Search) -> None:
        context = self._context
        context.journal = self._engine.load(commit)
        context.state.restore(commit.state)
        if context.rank.is_first:
            precision.compare(commit.state.precision, self._engine.dtype, commit.step)
        self._take_course(search)
        self._checks.resumed(commit.state)
        context.standing.step, context.standing.samples = context.step, context.state.samples

    def _take_course(self, search: Search) -> None:
        """As the commit's decisions have it; where it was made with another recipe or for another
        run, as they are to be understood by the one of now."""
        context = self._context
        recipe, state = context.settings.recipe, context.state
        self._planner.has_new_end = "recipe" in search.changed or search.is_foreign
        if self._planner.has_new_end:
            state.decisions = carried(search.recipe, recipe, state.decisions, state.step)
        context.course = Course.of(recipe, state.decisions)

    def _resume_accounts(self, commit: Commit | None) -> None:
        """Time and devices that the run had spent before this process."""
        context = self._context
        committed = commit.state.ledger if commit is not None else {}
        # The launcher's imports and its wait for other nodes count too.
        held_since = process_started(os.getppid())
        context.ledger.resumed(
            committed,
            self._recorder.left_ledger(),
            attempt=context.settings.run.attempt,
            started_unix_time=time.time() - (time.monotonic() - process_started()),
            held_since=held_since,
        )
        # What attempts spent after their last commit is known to the operator alone.
        held = context.settings.run.held_seconds + time.monotonic() - held_since
        missed = max(0.0, held - sum(context.ledger.seconds().values()))
        self._planner.resumed(context.state, sum(committed.values()), missed)
        self._recorder.leave_ledger()

    def roll_back(self, reason: str) -> None:
        """Weights, optimizer and average become those of the last commit; its data is passed over.

        Raises:
            NonFiniteLossError: nothing was committed yet.
        """
        context = self._context
        at = context.step
        context.heartbeat.enter(Phase.RESTORING)
        with context.ledger.during("restore"), self._saver.counting_bytes():
            search = self._checkpointer.find(unwanted=_amid_bad_steps)
            if (commit := search.commit) is None:
                raise NonFiniteLossError(f"{reason}, before anything was committed; {REMEDY}")
            self._checkpointer.begin(search)
            context.journal = self._engine.load(commit)
        passed = context.state.roll_back(commit.state, reason)
        self._saver.keeper.resumed(context.state)
        self._take_course(search)
        self._recorder.rolled_back()
        self._saver.is_owed = True  # what was passed over is to stay so whatever happens next
        context.ledger.rolled_back(commit.step)
        if context.rank.is_first:
            context.metrics.health.rolled_back()
            log.event(
                "rolled_back",
                level=logging.WARNING,
                from_step=at,
                to_step=commit.step,
                passed_over=[passed.start, passed.end],
                reason=reason,
            )


def _amid_bad_steps(commit: Commit) -> str | None:
    """Made where a stop came among them: its weights are those of before it, and no older."""
    return "it was made amid bad gradients" if commit.state.bad_steps else None
