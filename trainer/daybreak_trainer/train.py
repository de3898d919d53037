"""One rank of a run: build, resume, train, commit, export, judge.

`main` is what the launcher starts. The loop is `Trainer.train`; everything it calls lives in a
module of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from daybreak_trainer import rank as ranks
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.allocator import keep_freed_memory
from daybreak_trainer.checkpoint.due import Due
from daybreak_trainer.checkpoint.history import HistoryLine, Journal
from daybreak_trainer.checkpoint.layout import Commit, TrainState
from daybreak_trainer.checks import StepChecks
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.data.feed import DeviceFeed
from daybreak_trainer.data.signature import signature
from daybreak_trainer.engine import Engine
from daybreak_trainer.evaluate.during import EvaluationStoppedError, RunEvaluator
from daybreak_trainer.finish import Finisher
from daybreak_trainer.health import restarts, self_test
from daybreak_trainer.health.grace import usable_seconds
from daybreak_trainer.health.heartbeat import Heartbeat, Phase
from daybreak_trainer.health.non_finite import REMEDY, Verdict
from daybreak_trainer.keeper import Keeper
from daybreak_trainer.meters import Meters
from daybreak_trainer.parallel.agreement import Agreed, StepAgreement
from daybreak_trainer.parallel.collector import Collector
from daybreak_trainer.parallel.process_group import Rank, joined
from daybreak_trainer.progress import ProgressReporter
from daybreak_trainer.rank import NonFiniteLossError, Standing, StopRequestedError
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.replan import Replanner
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.stores.errors import StorageError
from daybreak_trainer.stores.probe import places, probe
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.ledger import Ledger, LedgerFile, LedgerRecord, process_started
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.phases import StepTimer

_LEDGER_EVERY_SECONDS = 5.0
_PATIENCE = timedelta(days=1)
"""For ranks that do not come to a collective: their launcher finds them, and the one to blame."""


class StopFlag:
    """Set by SIGTERM; what follows is agreed on by all ranks (`StepAgreement`)."""

    def __init__(self) -> None:
        self.requested_at: float | None = None
        """On the monotonic clock."""
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested_at is None:
            self.requested_at = time.monotonic()

    @property
    def is_set(self) -> bool:
        return self.requested_at is not None


class _RollBackError(Exception):
    """Too many steps in a row without a finite gradient."""


class Trainer:
    def __init__(
        self,
        settings: Settings,
        rank: Rank,
        standing: Standing,
        stop: StopFlag,
        heartbeat: Heartbeat,
        restart_causes: Sequence[str] = (),
    ) -> None:
        """`restart_causes`: why ranks of this attempt were started again, oldest first."""
        self.settings, self.rank, self.standing, self.stop = settings, rank, standing, stop
        self.heartbeat, self.restart_causes = heartbeat, restart_causes
        self.recipe, self.run_settings = settings.recipe, settings.run
        self.metrics = train_metrics()
        self.ledger = Ledger(started=process_started())
        self.ledger_file, self.ledger_written = LedgerFile(settings.work_dir), 0.0
        self.progress = ProgressReporter(settings, rank, standing)
        self._probe_stores()
        self.timer = StepTimer(rank.device)
        self.engine = Engine(settings, rank, self.timer, self._before_update)
        self.checkpointer = self.engine.checkpointer
        self.meters = Meters(self.engine, self.timer)
        self.checks = StepChecks(rank, self.run_settings.health.non_finite_steps)
        self.planner = Replanner(
            settings,
            rank,
            [] if self.recipe.is_fixed else self.engine.stage_work(),
            sum(parameter.numel() for parameter in self.engine.model.parameters()),
            self.engine.frozen_parameters,
        )
        self.journal = Journal()
        self.state = RunState()
        self.keeper = Keeper(self.engine)
        self.course = Course.of(self.recipe)
        self.starts: dict[int, int] = {}
        """Step -> where its global batch began, until all ranks agreed on it."""
        run = self.run_settings
        self.save_is_owed = False
        self.due = Due(run.checkpoint_interval_seconds, run.checkpoint_interval_steps)
        self.evaluator = RunEvaluator(self.engine, heartbeat, lambda: stop.is_set)
        self.finisher = Finisher(
            settings,
            rank,
            self.engine.text,
            self.progress,
            self.heartbeat,
            self.ledger,
            self.engine.corpus.description,
            self.engine.autoencoder,
        )
        if rank.is_first:
            self.metrics.health.grace(usable_seconds(run.grace_seconds))

    def _probe_stores(self) -> None:
        """One rank of each node asks; all hear the answer, so that no other error comes first."""
        problem: StorageError | None = None
        if self.rank.is_first_of_node:
            try:
                probe(places(self.settings))
            except StorageError as error:
                problem = error
        problems: list[StorageError | None] = [None] * self.rank.world
        dist.all_gather_object(problems, problem)
        for found in problems:
            if found is not None:
                raise found

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def stage(self) -> int:
        """Number, from 0, of the stage that the next step belongs to."""
        return self.course.index_at(self.step)

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains what is left of the run, then commits, exports and judges the result.

        Raises:
            StopRequestedError: SIGTERM; the state is committed.
            BadDataError, DataUnavailableError, RecipeError, ChangedError, StorageError,
            SelfTestError, NonFiniteLossError, ExportTakenError: as their names say.
        """
        self.finisher.check()
        self.test_devices()
        self.resume()
        self._heed_stop()
        self.follow(self.planner.at_resume(self.course, self.state, self.ledger.seconds()))
        if self.step < self.course.total_steps:
            self.warm_up()
            self._heed_stop()
        while self.step < self.course.total_steps:
            try:
                self.train()
            except _RollBackError as error:
                self.roll_back(str(error))
        self.validate_finally()
        with self._counting_bytes():
            self.keeper.at_end(self.state)
        self.commit()
        self._heed_stop()
        self.engine.drop_cache()
        self.finisher.finish(
            self.step, self.state.samples, self.engine.ema.shadow, self.planner.device_seconds
        )
        with self._counting_bytes():
            self.checkpointer.close()
        self.progress.done(self.ledger.seconds())

    def test_devices(self) -> None:
        """Devices, links and storage, before a day is spent on them."""
        self.heartbeat.enter(Phase.SELF_TEST)
        sizes = self_test.CUDA_SIZES if self.rank.device.type == "cuda" else self_test.CPU_SIZES
        results = self_test.run(self.rank, self.settings.node, self.engine.storage, sizes)
        self.meters.self_test(results)
        stored = [result.storage.write_bytes_per_second for result in results if result.storage]
        self.planner.store_writes(min(stored))

    def warm_up(self) -> None:
        """Compiles what the steps need."""
        self.heartbeat.enter(Phase.COMPILING)
        with self.ledger.during("compile"):
            self.engine.warm_up(self.heartbeat.moved)

    def train(self) -> None:
        """Optimizer steps until the end of the stage that the run is in."""
        stage = self.stage
        self.enter(stage)
        loader = self.engine.loader(self.state, self.course, self.heartbeat.says)
        agreement = StepAgreement(dist.group.WORLD, own_values=1)
        batches = iter(DeviceFeed(loader, self.rank.device))
        try:
            with Collector() as garbage:
                self.ledger.begin_steps()
                self.meters.pause()
                while self.step < self.course.ends[stage]:
                    self.act(self.one_step(batches, agreement), agreement)
                    self.replan()
                    garbage.after_step(self.step)
                self.record(agreement.drain())
        finally:
            loader.close()

    def enter(self, stage: int) -> None:
        """What a stage changes but for its data, which its loader brings."""
        self.engine.step.enter(stage)
        self.planner.enter(self.step, self.ledger.seconds())
        self.progress.stage(stage, self.course)
        self.progress.phase("Training")
        if self.rank.is_first:
            settings = self.recipe.stages[stage]
            log.event(
                "stage_started" if self.step == self.course.begin(stage) else "stage_resumed",
                stage=stage + 1,
                of=len(self.recipe.stages),
                step=self.step,
                resolution=settings.resolution,
                batch_size=settings.batch_size,
            )

    def replan(self) -> None:
        """Decides anew how long the run is, where that is due: all ranks at the same step."""
        self.follow(self.planner.after_step(self.course, self.state, self.ledger.seconds()))

    def follow(self, decision: Decision | None) -> None:
        """From here on, where there is one."""
        if decision is None:
            return
        before = self.course.without_steps
        self.state.decisions = (*self.state.decisions, decision)
        self.course = self.course.after(decision)
        self.progress.planned(self.course)
        if not self.rank.is_first:
            return
        log.event("plan_decided", **decision.model_dump())
        for stage in sorted(self.course.without_steps - before):
            log.event("stage_without_steps", level=logging.WARNING, stage=stage + 1)

    def one_step(self, batches: Iterator[Batch], agreement: StepAgreement) -> list[Agreed]:
        """One optimizer step; returns what all ranks agreed on about an earlier one."""
        mark = time.monotonic()
        self.heartbeat.enter(Phase.DATA)
        self.metrics.loader.waits(self.rank.rank)
        with self.ledger.during("data_wait"), self.timer.phase("data"):
            batch = next(batches)
        self.metrics.loader.has_batch(self.rank.rank)
        waited = time.monotonic() - mark
        self.heartbeat.enter(Phase.STEP)
        numbers = self.engine.step.run(batch, self.learning_rate(self.step))
        self.state.trained(batch)
        self.starts[self.step] = batch.whole.start
        self.heartbeat.step(self.step)
        self.ledger.step_finished(self.step)
        self.meters.step(batch, self.step)
        done = agreement.exchange(
            self.step,
            stop=self.stop.is_set,
            checkpoint_due=self.rank.is_first and self.due.by_time(),
            signature=signature(batch.positions[: batch.own], batch.indices[: batch.own]),
            numbers=numbers,
            own=(self.meters.own_work(batch, waited),),
            evaluation_due=self.rank.is_first and self.evaluator.due.by_time(),
        )
        # On a GPU the host waits for the device only in `exchange`.
        self.state.training_seconds += time.monotonic() - mark
        return done

    def act(self, done: list[Agreed], agreement: StepAgreement) -> None:
        """What follows from a finished step; the same on all ranks."""
        self.record(done)
        if self.engine.power is not None:
            with self.ledger.during("checkpoint"), self._counting_bytes():
                self.keeper.after_step(
                    self.state, self.course, self.course.stage_at(self.step - 1).batch_size
                )
        if self.due.by_steps(self.step) or any(agreed.checkpoint_due for agreed in done):
            self.save_is_owed = True
        if self.save_is_owed or any(agreed.stop for agreed in done):
            rest = agreement.drain()
            self.record(rest)
            if any(agreed.stop for agreed in (*done, *rest)):
                self.commit()
                self._leave()
            self.save()
        if self.evaluator.due.after(self.step, done):
            self.evaluate(draws=True)
        self.heed_saves()

    def evaluate(self, *, draws: bool) -> None:
        """Judges the averaged weights of now, unless a rank is to stop; a collective."""
        if not self.evaluator.is_on:
            return
        stage = self.course.index_at(self.step - 1)
        if self.engine.step.stage != stage:  # an attempt that found nothing left to train
            self.engine.step.enter(stage)
        self.progress.phase("Evaluating")
        try:
            with self.ledger.during("evaluation"):
                found = self.evaluator.run(self.step, stage, draws=draws)
        except EvaluationStoppedError:
            log.event("evaluation_stopped", at=self.step)
        else:
            self.journal.append(found)
            self.planner.evaluated(found.seconds)
            self.progress.validated(found)
        self.progress.phase("Training")
        self.meters.pause()

    def validate_finally(self) -> None:
        """The end of the curve; grid and benchmark are drawn from the export."""
        last = max((found.step for found in self.journal.evaluations()), default=0)
        if self.evaluator.validates and last < self.step:
            self.evaluate(draws=False)

    def save(self) -> None:
        """Begins to save, unless gradients are bad just now: the run may have to go back to before
        they were, and a commit of today's weights would be where it finds itself."""
        if self.checks.bad_steps:
            return
        with self.ledger.during("checkpoint"), self._counting_bytes():
            self.keeper.settle(self.state)
            self.checkpointer.save(self.snapshot(), self.engine.tensors(), self.journal)
        self.due.began()
        self.save_is_owed = False

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` steps."""
        return self.recipe.optimizer.learning_rate * self.course.factor(step)

    def _before_update(self) -> None:
        with self.ledger.during("checkpoint"), self.timer.phase("staging"):
            self.checkpointer.before_update()

    def record(self, done: list[Agreed]) -> None:
        """Notes finished steps in journal, log and progress.

        Raises:
            _RollBackError: too many of them in a row had no finite gradient.
            NonFiniteLossError: they had none again.
        """
        for agreed in done:
            self._record(agreed)
            verdict = self.checks.observe(agreed, self.course.index_at(agreed.step - 1))
            if verdict is Verdict.ROLL_BACK:
                limit = self.run_settings.health.non_finite_steps
                raise _RollBackError(
                    f"{limit} steps in a row without a finite gradient, up to step {agreed.step}"
                )
            if verdict is Verdict.GIVE_UP:
                raise NonFiniteLossError(self.checks.explanation(agreed.step))

    def _record(self, agreed: Agreed) -> None:
        stage = self.course.stage_at(agreed.step - 1)
        self.journal.append(
            HistoryLine(
                step=agreed.step,
                position=self.starts.pop(agreed.step),
                size=stage.batch_size,
                samples=f"{agreed.signature:016x}",
                loss=agreed.loss,
                world=self.rank.world,
            )
        )
        self.standing.step, self.standing.samples = agreed.step, self.state.samples
        if not agreed.finite:
            self.ledger.step_skipped(agreed.step)
        if self.rank.is_first:
            seconds = self.ledger.seconds()
            self.meters.log(agreed)
            self.progress.step(
                agreed,
                self.state,
                self.course,
                self.meters.speed(),
                seconds,
            )
            if time.monotonic() - self.ledger_written >= _LEDGER_EVERY_SECONDS:
                self.leave_ledger()

    def leave_ledger(self) -> None:
        """For the process that comes after this one, if it dies."""
        if self.rank.is_first:
            self.ledger_written = time.monotonic()
            self.ledger_file.write(
                LedgerRecord(
                    attempt=self.run_settings.attempt,
                    unix_time=time.time(),
                    seconds=self.ledger.seconds(),
                )
            )

    # --- state ----------------------------------------------------------------------------------

    def resume(self) -> None:
        """Goes on from the newest good commit of the run's lineage, or from the beginning."""
        self.heartbeat.enter(Phase.RESTORING)
        with self.ledger.during("restore"), self._counting_bytes():
            search = self.checkpointer.find()
            self.standing.skipped_checkpoints = tuple(search.skipped)
            self.checkpointer.begin(search)
            if (commit := search.commit) is not None:
                self.journal = self.engine.load(commit)
                self.state.restore(commit.state)
                self.course = Course.of(self.recipe, self.state.decisions)
                self.checks.resumed(commit.state)
                self.standing.step, self.standing.samples = self.step, self.state.samples
            self.keeper.resumed(self.state)
            self.engine.reserve(fresh=commit is None)
        self.ledger.resumed(
            commit.state.ledger if commit is not None else {},
            self.ledger_file.read(),
            attempt=self.run_settings.attempt,
            started_unix_time=time.time() - (time.monotonic() - process_started()),
            # The launcher's imports and its wait for other nodes count too.
            held_since=process_started(os.getppid()),
        )
        self.planner.resumed(
            self.state, sum(commit.state.ledger.values()) if commit is not None else 0.0
        )
        self.leave_ledger()
        same = commit is not None and commit.attempt == self.run_settings.attempt
        self.state.restarted(self.restart_causes, same)
        if self.rank.is_first and self.state.restarts:
            self.metrics.health.restarts(self.state.restarts)
        reference = self.checkpointer.reference
        self.standing.checkpoint = reference
        self.progress.resumed(reference, search.skipped, self.state)
        for found in deque(self.journal.evaluations(), maxlen=1):
            self.planner.evaluated(found.seconds)
            self.progress.validated(found)

    def roll_back(self, reason: str) -> None:
        """Weights, optimizer and average become those of the last commit; its data is passed over.

        Raises:
            NonFiniteLossError: nothing was committed yet.
        """
        at = self.step
        self.heartbeat.enter(Phase.RESTORING)
        with self.ledger.during("restore"), self._counting_bytes():
            search = self.checkpointer.find(unwanted=_amid_bad_steps)
            if (commit := search.commit) is None:
                raise NonFiniteLossError(f"{reason}, before anything was committed; {REMEDY}")
            self.checkpointer.begin(search)
            self.journal = self.engine.load(commit)
        passed = self.state.roll_back(commit.state, reason)
        self.keeper.resumed(self.state)
        self.course = Course.of(self.recipe, self.state.decisions)
        self.starts.clear()
        self.save_is_owed = True  # what was passed over is to stay so whatever happens next
        self.ledger.rolled_back(commit.step)
        self.evaluator.due.rolled_back(commit.step)
        if self.rank.is_first:
            self.metrics.health.rolled_back()
            log.event(
                "rolled_back",
                level=logging.WARNING,
                from_step=at,
                to_step=commit.step,
                passed_over=[passed.start, passed.end],
                reason=reason,
            )

    def _counting_bytes(self) -> AbstractContextManager[None]:
        """While ranks wait for a store, what it takes and gives is their progress, and a save that
        is not over is named."""
        checkpointer = self.checkpointer
        return self.heartbeat.counting(checkpointer.moved, waits_for=checkpointer.waits_for)

    def snapshot(self) -> TrainState:
        ledger = self.ledger.seconds()
        return self.state.snapshot(
            ledger, self.planner.device_seconds(ledger), self.checks.bad_steps
        )

    def commit(self) -> None:
        """Saves and waits until the commit is real."""
        self.heartbeat.enter(Phase.CHECKPOINTING)
        self.progress.phase("Checkpointing")
        with self.ledger.during("checkpoint"), self._counting_bytes():
            self.keeper.settle(self.state)
            self.checkpointer.save_now(self.snapshot(), self.engine.tensors(), self.journal)
        self.heed_saves()
        self.progress.phase("Training")

    def heed_saves(self) -> None:
        """Notes what became of saves; raises StorageError where the store fails again and again."""
        outcomes = self.checkpointer.poll()
        for outcome in outcomes:
            if outcome.commit is None:
                if self.rank.is_first:
                    self.metrics.checkpoints.failed()
                continue
            self.ledger.committed(outcome.step)
            self.planner.committed(outcome.staging_seconds + outcome.write_seconds)
            reference = self.checkpointer.reference
            assert reference is not None  # the commit just made
            self.standing.checkpoint = reference
            self.progress.committed(reference, outcome)
            if self.rank.is_first:
                self.meters.stop_would_take(outcome, self.run_settings.grace_seconds)
        if outcomes and outcomes[-1].give_up and outcomes[-1].failure is not None:
            raise outcomes[-1].failure

    def _heed_stop(self) -> None:
        """Between steps, where all ranks can wait for each other: leaves if any was asked to."""
        wish = torch.tensor(int(self.stop.is_set))
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        if wish:
            self.commit()
            self._leave()

    def _leave(self) -> None:
        """After the commit of a stop."""
        self.progress.phase("Stopping")
        reference = self.checkpointer.reference
        assert reference is not None  # the commit just made
        if self.stop.requested_at is not None:
            seconds = time.monotonic() - self.stop.requested_at
            self.metrics.health.stop(seconds)
            log.event("stopped", step=reference.step, seconds=round(seconds, 2))
        with self._counting_bytes():
            self.checkpointer.close()
        raise StopRequestedError(reference)


def _amid_bad_steps(commit: Commit) -> str | None:
    """Made where a stop came among them: its weights are those of before it, and no older."""
    return "it was made amid bad gradients" if commit.state.bad_steps else None


def main() -> int:
    """Runs this rank to its end; returns the exit code of the contract, and leaves a record."""
    standing = Standing()
    number, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    stop = StopFlag()
    try:
        settings = pod_settings.read()
    except (pod_settings.SettingsError, RecipeError) as error:
        record = ranks.failure(error, number, standing)
        ranks.write_record(pod_settings.work_dir(), number, record)
        return record.exit_code
    run = settings.run
    named = {"run": run.name, "namespace": run.namespace, "attempt": run.attempt, "rank": number}
    log.configure(lambda: {**named, "step": standing.step})
    np.seterr(all="raise", under="ignore")
    heartbeat = Heartbeat(settings.work_dir, local)
    causes = restarts.read(os.environ)
    try:
        with joined(_PATIENCE) as rank:
            if rank.device.type == "cpu":
                keep_freed_memory()
            Trainer(settings, rank, standing, stop, heartbeat, causes).run()
        record = ranks.done(number, standing)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 (each becomes a record)
        record = ranks.failure(error, number, standing)
        if record.traceback:
            print(record.traceback, file=sys.stderr)
    ranks.write_record(settings.work_dir, number, record)
    return record.exit_code
