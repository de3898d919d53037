"""One rank of a run: build, resume, train, commit, export, judge.

`main` is what torchrun starts. The loop is `Trainer.train`; everything it calls lives in a module
of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from daybreak_trainer import rank as ranks
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.checkpoint.checkpointer import Due
from daybreak_trainer.checkpoint.history import HistoryLine, Journal
from daybreak_trainer.checkpoint.layout import TrainState
from daybreak_trainer.checkpoint.storage import StorageError
from daybreak_trainer.data.batch import Batch
from daybreak_trainer.data.feed import DeviceFeed
from daybreak_trainer.data.signature import signature
from daybreak_trainer.engine import Engine
from daybreak_trainer.finish import Finisher
from daybreak_trainer.meters import Meters
from daybreak_trainer.parallel.agreement import Agreed, StepAgreement
from daybreak_trainer.parallel.collector import Collector
from daybreak_trainer.parallel.process_group import Rank, joined
from daybreak_trainer.progress import ProgressReporter
from daybreak_trainer.rank import Standing, StopRequestedError
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.schedule import wsd
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.stores.probe import places, probe
from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.ledger import Ledger, process_started
from daybreak_trainer.telemetry.metrics import train_metrics
from daybreak_trainer.telemetry.phases import StepTimer


class StopFlag:
    """Set by SIGTERM; what follows is agreed on by all ranks (`StepAgreement`)."""

    def __init__(self) -> None:
        self.is_set = False
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True


class Trainer:
    def __init__(self, settings: Settings, rank: Rank, standing: Standing, stop: StopFlag) -> None:
        self.settings, self.rank, self.standing, self.stop = settings, rank, standing, stop
        self.recipe = settings.recipe
        self.ledger = Ledger(started=process_started())
        self.progress = ProgressReporter(settings, rank, standing)
        if rank.is_first_of_node:
            probe(places(settings))
        self.timer = StepTimer(rank.device)
        self.engine = Engine(settings, rank, self.timer, self._before_update)
        self.checkpointer = self.engine.checkpointer
        self.meters = Meters(self.engine, self.timer)
        self.journal = Journal()
        self.state = RunState()
        self.starts: dict[int, int] = {}
        """Step -> where its global batch began, until all ranks agreed on it."""
        run = settings.run
        self.due = Due(run.checkpoint_interval_seconds, run.checkpoint_interval_steps)
        self.finisher = Finisher(
            settings, rank, list(self.engine.corpus.vocabulary), self.engine.text, self.progress
        )

    @property
    def step(self) -> int:
        return self.state.step

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains what is left of the run, then commits, exports and judges the result.

        Raises:
            StopRequestedError: SIGTERM; the state is committed.
            BadDataError, RecipeError, ChangedError, StorageError, NonFiniteLossError,
            ExportTakenError: as their names say.
        """
        self.finisher.check()
        self.resume()
        if self.step < self.recipe.total_steps:
            self.train()
            self.commit()
        if self._any_rank_stops():
            self._leave()
        self.finisher.finish(self.step, self.engine.ema.shadow)
        self.checkpointer.close()
        self.progress.phase("Done")

    def train(self) -> None:
        """Optimizer steps until the recipe's end."""
        loader = self.engine.loader(self.state)
        agreement = StepAgreement(dist.group.WORLD)
        batches = iter(DeviceFeed(loader, self.rank.device))
        self.progress.phase("Training")
        try:
            with Collector() as garbage:
                self.ledger.begin_steps()
                self.meters.pause()
                while self.step < self.recipe.total_steps:
                    garbage.after_step(self.step)
                    self.act(self.one_step(batches, agreement), agreement)
                for agreed in agreement.drain():
                    self.record(agreed)
        finally:
            loader.close()

    def one_step(self, batches: Iterator[Batch], agreement: StepAgreement) -> list[Agreed]:
        """One optimizer step; returns what all ranks agreed on about an earlier one."""
        mark = time.monotonic()
        with self.ledger.during("data_wait"), self.timer.phase("data"):
            batch = next(batches)
        numbers = self.engine.step.run(batch, self.learning_rate(self.step))
        self.state.trained(batch)
        self.state.training_seconds += time.monotonic() - mark
        self.starts[self.step] = batch.after.samples - batch.global_size
        self.ledger.step_finished(self.step)
        self.meters.step(batch, self.step)
        return agreement.exchange(
            self.step,
            stop=self.stop.is_set,
            checkpoint_due=self.rank.is_first and self.due.by_time(),
            signature=signature(batch.positions[: batch.own], batch.indices[: batch.own]),
            numbers=numbers,
        )

    def act(self, done: list[Agreed], agreement: StepAgreement) -> None:
        """What follows from a finished step; the same on all ranks."""
        for agreed in done:
            self.record(agreed)
        if any(agreed.stop for agreed in done):
            for agreed in agreement.drain():
                self.record(agreed)
            self.commit()
            self._leave()
        if self.due.by_steps(self.step) or any(agreed.checkpoint_due for agreed in done):
            for agreed in agreement.drain():
                self.record(agreed)
            with self.ledger.during("checkpoint"):
                self.checkpointer.save(self.snapshot(), self.engine.tensors(), self.journal)
            self.due.began()
        self.heed_saves()

    def learning_rate(self, step: int) -> float:
        factor = wsd.factor(self.recipe.schedule, step, self.recipe.total_steps)
        return self.recipe.optimizer.learning_rate * factor

    def _before_update(self) -> None:
        with self.ledger.during("checkpoint"), self.timer.phase("staging"):
            self.checkpointer.before_update()

    def record(self, agreed: Agreed) -> None:
        """Notes a finished step in journal, log and progress."""
        _, stage = self.recipe.stage_at(agreed.step - 1)
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
            self.meters.log(agreed)
            self.progress.step(
                agreed,
                self.state,
                self.learning_rate(agreed.step - 1),
                self.meters.speed(),
                self.ledger.seconds(),
            )

    # --- state ----------------------------------------------------------------------------------

    def resume(self) -> None:
        """Goes on from the newest good commit of the run's lineage, or from the beginning."""
        with self.ledger.during("restore"):
            search = self.checkpointer.find()
            self.standing.skipped_checkpoints = tuple(search.skipped)
            self.checkpointer.begin(search)
            if (commit := search.commit) is not None:
                self.journal = self.engine.load(commit)
                self.state.restore(commit.state)
                self.ledger.resumed(commit.state.ledger)
                self.standing.step, self.standing.samples = self.step, self.state.samples
        reference = self.checkpointer.reference
        self.standing.checkpoint = reference
        self.progress.resumed(reference, search.skipped, self.state)

    def snapshot(self) -> TrainState:
        return self.state.snapshot(self.ledger.seconds())

    def commit(self) -> None:
        """Saves and waits until the commit is real."""
        self.progress.phase("Checkpointing")
        with self.ledger.during("checkpoint"):
            self.checkpointer.save_now(self.snapshot(), self.engine.tensors(), self.journal)
        self.heed_saves()
        self.progress.phase("Training")

    def heed_saves(self) -> None:
        """Notes what became of saves; raises StorageError where the store fails again and again."""
        for outcome in self.checkpointer.poll():
            if outcome.commit is None:
                train_metrics().checkpoints.failed()
                if outcome.give_up:
                    raise StorageError(outcome.error)
                continue
            self.ledger.committed(outcome.step)
            reference = self.checkpointer.reference
            assert reference is not None  # the commit just made
            self.standing.checkpoint = reference
            self.progress.committed(reference, outcome)

    def _any_rank_stops(self) -> bool:
        wish = torch.tensor(int(self.stop.is_set))
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        return bool(wish)

    def _leave(self) -> None:
        self.progress.phase("Stopping")
        self.checkpointer.close()
        reference = self.checkpointer.reference
        assert reference is not None  # the commit just made
        raise StopRequestedError(reference)


def main() -> int:
    """Runs this rank to its end; returns the exit code of the contract, and leaves a record."""
    standing = Standing()
    number = int(os.environ.get("RANK", "0"))
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
    try:
        with joined() as rank:
            Trainer(settings, rank, standing, stop).run()
        record = ranks.done(number, standing)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 (each becomes a record)
        record = ranks.failure(error, number, standing)
        if record.traceback:
            print(record.traceback, file=sys.stderr)
    ranks.write_record(settings.work_dir, number, record)
    return record.exit_code
