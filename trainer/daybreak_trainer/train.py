"""The course of a run on one rank: build, resume, train, commit, export, judge.

`rank_main` starts it. The loop is `Trainer.train`; everything it calls lives in a module of its
own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch.distributed as dist

from daybreak_trainer.checks import StepChecks
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.data.feed import DeviceFeed
from daybreak_trainer.data.signature import signature
from daybreak_trainer.engine import Engine
from daybreak_trainer.evaluate.during import EvaluationStoppedError, RunEvaluator
from daybreak_trainer.finish import Finisher
from daybreak_trainer.health.grace import usable_seconds
from daybreak_trainer.health.heartbeat import Heartbeat, Phase
from daybreak_trainer.meters import Meters
from daybreak_trainer.parallel.agreement import Agreed, StepAgreement
from daybreak_trainer.parallel.collector import Collector
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.rank import LimitReachedError, Standing
from daybreak_trainer.rank_stop import RankStop, StopFlag
from daybreak_trainer.recorder import Recorder, RollBackError
from daybreak_trainer.replan import Plan, Replanner
from daybreak_trainer.restorer import Restorer
from daybreak_trainer.run_context import RunContext
from daybreak_trainer.saver import Saver
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.schedule.decision import Decision
from daybreak_trainer.settings import Settings
from daybreak_trainer.start_up import ask_stores, test_devices
from daybreak_trainer.state import RunState
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.phases import StepTimer

Planning = Callable[[Course, RunState, Mapping[str, float]], Plan]
"""What a run is to do from here on, by its ledger."""


class Trainer:
    def __init__(
        self,
        settings: Settings,
        rank: Rank,
        standing: Standing,
        flag: StopFlag,
        heartbeat: Heartbeat,
        restart_causes: Sequence[str] = (),
    ) -> None:
        """Built by all ranks together. `restart_causes`: why ranks of this attempt were started
        again, oldest first.

        Raises:
            DatasetError, DataUnavailableError, RecipeError, HubUnreachableError, ComputeError,
            StorageError: as their names say.
        """
        self.settings, self.recipe, self.rank = settings, settings.recipe, rank
        self.flag, self.heartbeat, self.restart_causes = flag, heartbeat, restart_causes
        context = self.context = RunContext(settings, rank, standing, heartbeat)
        self.metrics, self.ledger, self.progress = context.metrics, context.ledger, context.progress
        self.state = context.state
        ask_stores(settings, rank)
        self.timer = StepTimer(rank.device)
        self.engine = Engine(settings, rank, self.timer, self._before_update)
        self.meters = Meters(self.engine, self.timer)
        checks = StepChecks(rank, settings.run.health.non_finite_steps)
        self.planner = Replanner(
            settings,
            rank,
            self.engine.stage_work(),
            sum(parameter.numel() for parameter in self.engine.model.parameters()),
            self.engine.frozen_parameters,
        )
        self.recorder = Recorder(context, checks, self.meters)
        self.saver = Saver(context, self.engine, checks, self.planner, self.meters)
        self.restorer = Restorer(
            context, self.engine, self.saver, self.recorder, checks, self.planner
        )
        self.stop = RankStop(context, flag, self.saver)
        self.evaluator = RunEvaluator(self.engine, heartbeat, lambda: flag.is_set)
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
            self.metrics.health.grace(usable_seconds(settings.run.grace_seconds))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.context.step

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains what is left of the run, then commits, exports and judges the result.

        Raises:
            StopRequestedError: SIGTERM; the state is committed.
            LimitReachedError: budget or deadline came before the recipe's last step; where any was
                taken, the state is committed, exported and judged.
            BadDataError, DataUnavailableError, RecipeError, ChangedError, StorageError,
            SelfTestError, NonFiniteLossError, ExportTakenError: as their names say.
        """
        self.finisher.check()
        self.test_devices()
        self.restorer.resume(self.restart_causes)
        self.stop.heed()
        self.follow(self.planner.at_resume)
        if not self.last_step:
            raise self.limit_reached()
        if self.is_unfinished:
            self.warm_up()
            self.stop.heed()
        while self.is_unfinished:
            try:
                self.train()
            except RollBackError as error:
                self.restorer.roll_back(str(error))
                self.evaluator.due.rolled_back(self.step)
                # The commit's plan knows nothing of the time that was lost.
                self.follow(self.planner.at_resume)
        self.validate_finally()
        self.saver.keep_last()
        self.saver.commit()
        self.stop.heed()
        self.engine.drop_cache()
        self.finisher.finish(
            self.step, self.state.samples, self.engine.ema.shadow, self.planner.device_seconds
        )
        self.saver.close()
        self.progress.done(self.ledger.seconds())
        if self.rank.is_first and self.last_step < self.context.course.total_steps:
            # The other ranks have done their part, and are not told: none waits for the upload.
            raise self.limit_reached()

    @property
    def last_step(self) -> int:
        """Step at which training ends."""
        return self.planner.last_step(self.context.course)

    @property
    def is_unfinished(self) -> bool:
        return self.step < self.last_step

    def limit_reached(self) -> LimitReachedError:
        assert self.planner.reach is not None  # what ended the run
        return LimitReachedError(
            self.planner.reach.limit,
            self.step,
            self.context.course.known_steps,
            exported=self.settings.run.export_url is not None,
        )

    def test_devices(self) -> None:
        """Devices, links and storage, before a day is spent on them."""
        results = test_devices(self.context, self.engine)
        self.meters.self_test(results)
        stored = [result.storage.write_bytes_per_second for result in results if result.storage]
        self.planner.store_writes(min(stored))

    def warm_up(self) -> None:
        """Compiles what the steps need."""
        self.heartbeat.enter(Phase.COMPILING)
        with self.ledger.during("compile"):
            self.engine.warm_up(self.heartbeat.moved)

    # --- a stage --------------------------------------------------------------------------------

    def train(self) -> None:
        """Optimizer steps until the end of the stage that the run is in.

        Raises:
            RollBackError: too many steps in a row had no finite gradient.
        """
        stage = self.context.stage
        self.enter(stage)
        loader = self.engine.loader(self.state, self.context.course, self.heartbeat.says)
        agreement = StepAgreement(dist.group.WORLD, own_values=1)
        batches = iter(DeviceFeed(loader, self.rank.device))
        try:
            with Collector() as garbage:
                self.ledger.begin_steps()
                self.meters.pause()
                while self.step < min(self.context.course.ends[stage], self.last_step):
                    done = self.one_step(batches, agreement)
                    self.follow(self.planner.after_step)  # which says if this was the last step
                    self.act(done, agreement)
                    garbage.after_step(self.step)
                self.recorder.agreed(agreement.drain())
        finally:
            loader.close()

    def enter(self, stage: int) -> None:
        """What a stage changes but for its data, which its loader brings."""
        course = self.context.course
        self.engine.enter(stage)
        self.planner.enter(self.step, self.ledger.seconds())
        self.progress.stage(stage, course)
        self.progress.phase("Training")
        if self.rank.is_first:
            settings = self.recipe.stages[stage]
            log.event(
                "stage_started" if self.step == course.begin(stage) else "stage_resumed",
                stage=stage + 1,
                of=len(self.recipe.stages),
                step=self.step,
                resolution=settings.resolution,
                batch_size=settings.batch_size,
            )

    # --- a step ---------------------------------------------------------------------------------

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
        numbers = self.engine.step.run(batch, self.context.course.learning_rate(self.step))
        self.state.trained(batch)
        self.recorder.taken(batch)
        self.heartbeat.step(self.step)
        self.ledger.step_finished(self.step)
        self.meters.step(batch, self.step)
        done = agreement.exchange(
            self.step,
            stop=self.flag.is_set,
            checkpoint_due=self.rank.is_first and self.saver.due_by_time(),
            signature=signature(batch.positions[: batch.own], batch.indices[: batch.own]),
            numbers=numbers,
            own=(self.meters.own_work(batch, waited),),
            evaluation_due=self.rank.is_first and self.evaluator.due.by_time(),
        )
        # On a GPU the host waits for the device only in `exchange`.
        self.state.training_seconds += time.monotonic() - mark
        return done

    def _before_update(self) -> None:
        with self.ledger.during("checkpoint"), self.timer.phase("staging"):
            self.engine.checkpointer.before_update()

    def act(self, done: list[Agreed], agreement: StepAgreement) -> None:
        """What follows from a finished step; the same on all ranks."""
        self.recorder.agreed(done)
        self.saver.after_step(done)
        if self.saver.is_owed or any(agreed.stop for agreed in done):
            rest = agreement.drain()
            self.recorder.agreed(rest)
            if any(agreed.stop for agreed in (*done, *rest)):
                self.stop.leave()
            self.saver.save()
        if self.evaluator.due.after(self.step, done):
            self.evaluate(draws=True)
        self.saver.heed_outcomes()

    def follow(self, planning: Planning) -> None:
        """Decides anew how long the run is, where that is due: all ranks at the same step."""
        context = self.context
        plan = planning(context.course, self.state, self.ledger.seconds())
        if isinstance(plan, Decision):
            context.follow(plan)
        elif plan is not None:
            context.reaches(plan)

    def evaluate(self, *, draws: bool) -> None:
        """Judges the averaged weights of now, unless a rank is to stop; a collective."""
        if not self.evaluator.is_on:
            return
        stage = self.context.course.index_at(self.step - 1)
        if self.engine.step.stage != stage:  # an attempt that found nothing left to train
            self.engine.step.enter(stage)
        self.progress.phase("Evaluating")
        try:
            with self.ledger.during("evaluation"):
                found = self.evaluator.run(self.step, stage, draws=draws)
        except EvaluationStoppedError:
            log.event("evaluation_stopped", at=self.step)
        else:
            self.context.journal.append(found)
            self.planner.evaluated(found.seconds)
            self.progress.validated(found)
        self.progress.phase("Training")
        self.meters.pause()

    def validate_finally(self) -> None:
        """The end of the curve; grid and benchmark are drawn from the export."""
        last = max((found.step for found in self.context.journal.evaluations()), default=0)
        if self.evaluator.validates and last < self.step:
            self.evaluate(draws=False)
