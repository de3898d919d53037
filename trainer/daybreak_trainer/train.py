"""One rank of a run: build, resume, train, commit, export, judge.

`main` is what torchrun starts. The loop is `Trainer.train`; everything it calls lives in a module
of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from math import isfinite
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from daybreak_trainer import rank as ranks
from daybreak_trainer import settings as pod_settings
from daybreak_trainer.checkpoint.checkpointer import Checkpointer, Due, Point
from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.loader import Batch, Loader, StepPlan
from daybreak_trainer.data.mds import Dataset, open_dataset
from daybreak_trainer.data.signature import signature
from daybreak_trainer.finish import Finisher
from daybreak_trainer.models import text_to_image
from daybreak_trainer.models.text import encode
from daybreak_trainer.objectives import flow
from daybreak_trainer.optim import build as optimizers
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.parallel.agreement import Agreed, StepAgreement, StepNumbers
from daybreak_trainer.parallel.process_group import Rank, joined
from daybreak_trainer.parallel.shard import compute_dtype, mesh_of, shard
from daybreak_trainer.progress import ProgressReporter
from daybreak_trainer.rank import NonFiniteLossError, Standing, StopRequestedError
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.schedule import wsd
from daybreak_trainer.settings import Settings

_NON_FINITE_LIMIT = 10
"""Steps in a row without a finite gradient: one bad batch is skipped, this is no accident."""


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
        self.group = dist.group.WORLD
        self.progress = ProgressReporter(settings, rank, standing)
        self.dataset = self._open_dataset()
        model, self.text = text_to_image.build(self.recipe, list(self.dataset.vocabulary))
        self.text.encoder.to(rank.device)
        self.dtype = compute_dtype(self.recipe.precision, rank.device)
        self.model = model.to(rank.device)
        compute = settings.run.compute
        shard(self.model, self.model.units, mesh_of(rank, compute), self.dtype, compute)
        self.optimizers = optimizers.build(self.model, self.recipe.optimizer)
        self.ema = Ema(self.model, self.recipe.ema.decay)
        self.journal: list[HistoryLine] = []
        self.step = 0
        self.training_seconds = 0.0
        self._non_finite = 0
        run = settings.run
        self.checkpointer = Checkpointer(
            Storage(run.checkpoint_url, settings.storage_options("checkpoint")),
            Expected(run.uid, self.recipe.hash, self.dataset.fingerprint),
            run.attempt,
            run.checkpoint_keep_last,
            rank,
            self.group,
        )
        self.due = Due(run.checkpoint_interval_seconds, run.checkpoint_interval_steps)
        self.finisher = Finisher(settings, rank, self.dataset, self.text, self.progress)

    def _open_dataset(self) -> Dataset:
        stream = self.settings.run.streams[0]
        dataset = open_dataset(
            stream.url,
            self.settings.storage_options(stream.role),
            self.settings.work_dir / "cache" / "shards",
        )
        wanted = self.recipe.stages[0].resolution
        if dataset.resolution != wanted:
            raise DatasetError(
                f"{stream.url}: images are {dataset.resolution} px, recipe.stages[0].resolution "
                f"is {wanted}; prepare the dataset with --resolution {wanted} or change the recipe"
            )
        return dataset

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains what is left of the run, then commits, exports and judges the result.

        Raises:
            StopRequestedError: SIGTERM; the state is committed.
            BadDataError, RecipeError, StorageError, NonFiniteLossError, ExportTakenError: as their
                names say.
        """
        self.finisher.check()
        self.resume()
        if self.step < self.recipe.total_steps:
            self.train()
            self.commit()
        self.finisher.finish(self.step, self.ema.shadow)
        self.progress.phase("Done")

    def train(self) -> None:
        """Optimizer steps until the recipe's end."""
        loader = Loader(
            self.dataset,
            self.plans(),
            seed=self.recipe.seed,
            rank=self.rank.rank,
            world=self.rank.world,
        )
        agreement = StepAgreement(self.group)
        self.progress.phase("Training")
        mark = time.monotonic()
        try:
            for batch in loader:
                numbers = self.train_step(batch)
                now = time.monotonic()
                self.training_seconds += now - mark
                self.progress.local_step(batch.own, now - mark)
                mark = now
                done = agreement.exchange(
                    self.step,
                    stop=self.stop.is_set,
                    checkpoint_due=self.rank.is_first and self.due.is_due(self.step),
                    signature=signature(batch.positions[: batch.own], batch.indices[: batch.own]),
                    numbers=numbers,
                )
                if self.record(done):
                    rest = agreement.drain()
                    self.record(rest)
                    self.commit()
                    if any(agreed.stop for agreed in (*done, *rest)):
                        self._leave()
                    mark = time.monotonic()
            self.record(agreement.drain())
        finally:
            loader.close()

    def plans(self) -> Iterator[StepPlan]:
        """The steps that are left, from where training stands."""
        for step in range(self.step, self.recipe.total_steps):
            _, stage = self.recipe.stage_at(step)
            yield StepPlan(step, self.recipe.samples_at(step), stage.batch_size)

    def train_step(self, batch: Batch) -> StepNumbers:
        """One optimizer step."""
        rate = self.recipe.optimizer.learning_rate
        factor = wsd.factor(self.recipe.schedule, self.step, self.recipe.total_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        self.progress.learning_rate = rate * factor
        loss_share = self.loss(batch)
        # FSDP averages gradients over ranks; the global batch's mean is the sum of the shares.
        (loss_share * self.rank.world).backward()  # type: ignore[no-untyped-call]
        norm = self._clipped(loss_share)
        if isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self.ema.update(self.step)
        else:
            self.step += 1
        self.model.zero_grad(set_to_none=True)
        total = torch.tensor(norm)
        return StepNumbers(loss_share, total, total.isfinite())

    def loss(self, batch: Batch) -> Tensor:
        """Sum of this rank's sample losses over the global batch's size; a scalar."""
        device, recipe = self.rank.device, self.recipe
        images = torch.from_numpy(batch.images).to(device).float() / 127.5 - 1.0
        shape = (images.shape[1], images.shape[2], images.shape[3])
        draws = flow.draw(
            recipe.objective,
            recipe.text.caption_dropout,
            recipe.seed,
            batch.positions,
            shape,
            device,
        )
        captions = ["" if d else c for d, c in zip(draws.drop_caption, batch.captions, strict=True)]
        input_ids, mask = self.text.tokenize(captions, device)
        noised = flow.noised(images, draws).to(self.dtype)
        if self.text.trained:
            prediction = self.model(noised, draws.timesteps, mask, input_ids=input_ids)
        else:
            with torch.no_grad():
                text = encode(self.text.encoder, input_ids, mask).to(self.dtype)
            prediction = self.model(noised, draws.timesteps, mask, text=text)
        losses = flow.loss_per_sample(recipe.objective, prediction, images, draws.timesteps)
        return losses[: batch.own].sum() / batch.global_size

    def _clipped(self, loss_share: Tensor) -> float:
        """Clips the gradient; returns its norm. Where it is not finite, the step is to be skipped.

        The norm is global, so all ranks decide alike.
        """
        limit = self.recipe.optimizer.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        total = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.progress.gradient_norm = total
        if isfinite(total):
            self._non_finite = 0
            return total
        self._non_finite += 1
        if self._non_finite >= _NON_FINITE_LIMIT:
            raise NonFiniteLossError(
                f"the gradient was not finite for {self._non_finite} steps in a row, last at step "
                f"{self.step + 1} (loss share {float(loss_share):.3g}); lower "
                "recipe.optimizer.learningRate or look at the data"
            )
        return total

    def record(self, done: Sequence[Agreed]) -> bool:
        """Notes finished steps in journal and progress; says whether all are to commit now."""
        for agreed in done:
            stage_index, stage = self.recipe.stage_at(agreed.step - 1)
            self.journal.append(
                HistoryLine(
                    step=agreed.step,
                    position=self.recipe.samples_at(agreed.step - 1),
                    size=stage.batch_size,
                    samples=f"{agreed.signature:016x}",
                    loss=agreed.loss,
                    world=self.rank.world,
                )
            )
            self.standing.step = agreed.step
            self.standing.samples = self.recipe.samples_at(agreed.step)
            self.progress.step(agreed, stage_index, stage, self.training_seconds)
        return any(agreed.stop or agreed.checkpoint_due for agreed in done)

    # --- state ----------------------------------------------------------------------------------

    def resume(self) -> None:
        """Goes on from the newest good commit of the run's lineage, or from the beginning."""
        search = self.checkpointer.find()
        self.standing.skipped_checkpoints = tuple(search.skipped)
        self.checkpointer.begin(search)
        commit = search.commit
        if commit is not None:
            state = self.state()
            self.journal = self.checkpointer.restore(commit, state)
            set_optimizer_state_dict(
                self.model, self.optimizers, optim_state_dict=state["optimizer"]
            )
            self.step, self.training_seconds = commit.step, commit.training_seconds
            self.standing.step, self.standing.samples = commit.step, commit.samples
            self.standing.checkpoint = self.checkpointer.reference
        self.progress.resumed(self.checkpointer.reference, search.skipped, self.training_seconds)

    def state(self) -> dict[str, Any]:
        """Everything a commit holds as tensors; model and EMA are the live ones, not copies."""
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers),
            "ema": dict(self.ema.shadow),
        }

    def commit(self) -> None:
        if self.checkpointer.latest is not None and self.checkpointer.latest.step == self.step:
            return
        self.progress.phase("Checkpointing")
        started = time.monotonic()
        point = Point(self.step, self.recipe.samples_at(self.step), self.training_seconds)
        self.checkpointer.commit(point, self.state(), self.journal)
        self.due.committed()
        reference = self.checkpointer.reference
        assert reference is not None  # the commit just made
        self.standing.checkpoint = reference
        self.progress.committed(reference, time.monotonic() - started)
        self.progress.phase("Training")

    def _leave(self) -> None:
        self.progress.phase("Stopping")
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
