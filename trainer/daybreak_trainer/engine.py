"""Everything that trains, built once for a process: data, model, optimizers, checkpoints."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from daybreak_trainer import clean
from daybreak_trainer.checkpoint.checkpointer import Checkpointer
from daybreak_trainer.checkpoint.history import Journal
from daybreak_trainer.checkpoint.layout import Commit, run_folder
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.source import Source
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.data.batch import StepPlan
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.captions import most_drawn
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.embeddings import null_text
from daybreak_trainer.data.errors import DatasetError, DataUnavailableError
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.data.retry import RetryPolicy
from daybreak_trainer.data.shards import Shards
from daybreak_trainer.data.validation import ValidationBatch, read_validation
from daybreak_trainer.models import autoencoder, flops, text_report, text_to_image
from daybreak_trainer.models.flops import SampleFlops
from daybreak_trainer.models.pretrained import placed
from daybreak_trainer.models.text import TextTower, check_encoder
from daybreak_trainer.models.text_report import CaptionLengths
from daybreak_trainer.objectives import losses
from daybreak_trainer.optim import build as optimizers
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.optim.power_ema import PowerEma
from daybreak_trainer.parallel import microbatch, precision
from daybreak_trainer.parallel.attention import AttentionCall, log_backend
from daybreak_trainer.parallel.compile import Artifacts, Shape, artifacts_key, warm_up
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.parallel.shard import mesh_of, shard
from daybreak_trainer.parallel.turns import in_turns
from daybreak_trainer.recipe.stages import Stage
from daybreak_trainer.schedule.course import Course
from daybreak_trainer.settings import Settings
from daybreak_trainer.state import RunState
from daybreak_trainer.step import Phases, TrainStep
from daybreak_trainer.telemetry import log

_DECODING_THREADS = 4
_SAVE_SECONDS, _OF_THE_CLOCK = 600.0, 0.8


class Engine:
    """Built by all ranks together.

    Raises:
        DatasetError, DataUnavailableError, RecipeError, HubUnreachableError, ComputeError,
        ResumeFromError, StorageError: as their names say.
    """

    def __init__(
        self, settings: Settings, rank: Rank, phases: Phases, before_update: Callable[[], None]
    ) -> None:
        self.settings, self.rank, self.recipe = settings, rank, settings.recipe
        self.counters = DataCounters()
        latent = self.recipe.latent
        self.autoencoder = autoencoder.build(latent) if latent is not None else None
        """On the CPU in fp32: what an export takes along."""
        self.corpus = self._open_corpus()
        self.stages = tuple(self._at(stage) for stage in self.recipe.stages)
        """The corpus of each stage."""
        self._compare_corpora()
        self.dtype = self._agree_on_precision()
        compute = settings.run.compute
        seers = losses.load(self.recipe, rank.device)
        vocabulary = self.corpus.vocabulary
        self.text = self._text_tower(vocabulary)
        model, _ = text_to_image.build(self.recipe, vocabulary, seers.width, self.text)
        self.model = model.to(rank.device)
        mesh = mesh_of(rank, compute)
        shard(self.model, self.model.units, mesh, self.dtype, compute)
        self.optimizers = optimizers.build(self.model, self.recipe.optimizer, self.dtype)
        self.ema = Ema(self.model, self.recipe.ema.decay)
        self.clean = clean.CleanReader(self.recipe, self.autoencoder, rank.device, self.dtype)
        power = self.recipe.ema.power
        self.power = None if power is None else PowerEma(self.model, power.deviations)
        self.step = TrainStep(
            self.recipe,
            self.model,
            self.text,
            self.optimizers,
            self.ema,
            rank,
            self.dtype,
            self.clean,
            device_batch_size=compute.device_batch_size,
            before_update=before_update,
            phases=phases,
            seers=seers,
            null_text=self._null_text(),
            power=self.power,
        )
        run = settings.run
        self.storage = Storage(run.checkpoint_url, settings.storage_options("checkpoint"))
        self.checkpointer = Checkpointer(
            self.storage,
            self._expected(),
            run.attempt,
            run.checkpoint_keep_last,
            rank,
            # A rank that waits for a save must not look hung.
            timeout_seconds=min(_SAVE_SECONDS, _OF_THE_CLOCK * run.health.progress_seconds),
            source=self._source(),
        )

    def _agree_on_precision(self) -> torch.dtype:
        asked = self.recipe.precision
        dtype = precision.compute_dtype(asked, precision.has_bf16(self.rank.device))
        if self.rank.is_first:
            log.event("precision", computes_in=precision.name(dtype), asked_for=asked)
        return dtype

    def _text_tower(self, vocabulary: Mapping[str, int]) -> TextTower:
        """A frozen encoder computes in the step's precision, and comes to the device by way of the
        host's memory, where a node's ranks take turns. One whose embeddings were made before is
        kept on the host, for the export alone, as it is stored."""
        recipe, device = self.recipe, self.rank.device
        if recipe.text.kind != "pretrained" or recipe.text.precomputed:
            return text_to_image.text_tower(recipe, vocabulary, "auto")

        def load() -> TextTower:
            tower = text_to_image.text_tower(recipe, vocabulary, self.dtype)
            placed(tower.encoder, device, self.dtype)
            return tower

        return in_turns(self.rank, load) if device.type == "cuda" else load()

    def _null_text(self) -> Tensor | None:
        """The empty prompt's embedding that came with the data.

        Raises:
            DatasetError: the data's embeddings are not of the recipe's encoder.
        """
        if (described := self.corpus.embeddings) is None:
            return None
        check_encoder(described, self.text)
        return null_text(described)

    # --- data -----------------------------------------------------------------------------------

    def _open_corpus(self) -> Corpus:
        streams = [
            Stream(stream.url, self.settings.storage_options(stream.role), stream.weight)
            for stream in self.settings.run.streams
        ]
        policy = RetryPolicy.within(self.settings.run.health.progress_seconds)
        evaluation = self.settings.run.evaluation
        corpus = open_corpus(
            streams,
            self.counters,
            policy,
            columns=clean.columns(self.recipe, compared=bool(evaluation.extractors.given)),
            validation_samples=evaluation.validation_samples,
            captions=self.recipe.caption_columns,
            embeddings=self.recipe.text.precomputed,
        )
        if self.autoencoder is not None:
            clean.check(self.recipe, corpus, self.autoencoder.space)
        return corpus

    def _at(self, stage: Stage) -> Corpus:
        corpus, side = self.corpus.at(stage.resolution), self.recipe.pixels_per_token
        clean.check_resolution(self.recipe, corpus, stage.resolution)
        for bucket in corpus.buckets:
            if any(pixels % side for pixels in corpus.size(bucket)):
                multiple = side * corpus.reduction
                raise DatasetError(
                    f"bucket {bucket} of the data cannot be cut into patches of {side} px at "
                    f"{stage.resolution} px (recipe.denoiser.patchSize and latent.downsampling); "
                    f"prepare the dataset with --buckets --multiple {multiple}, or at a "
                    f"--resolution that {multiple} divides"
                )
        return corpus

    def _compare_corpora(self) -> None:
        """Each rank has read the indexes by itself, and a file may have been replaced meanwhile."""
        fingerprints = [""] * self.rank.world
        dist.all_gather_object(fingerprints, self.corpus.fingerprint)
        if len(set(fingerprints)) > 1:
            raise DataUnavailableError(
                "the data was changed while the ranks opened it: their indexes or skip lists differ"
            )

    def drop_cache(self) -> None:
        """Training is over: makes room on the scratch volume for the export."""
        if self.rank.is_first_of_node:
            shutil.rmtree(self._cache_folder, ignore_errors=True)

    @property
    def _cache_folder(self) -> Path:
        return self.settings.work_dir / "cache" / "shards"

    def loader(self, state: RunState, course: Course, says: Callable[[str], None]) -> Loader:
        """The batches of the stage that the run is in, from where it stands to the stage's end:
        what is read ahead never crosses it. `says` is told what training waits for, while it
        waits."""
        run, rank = self.settings.run, self.rank
        cache = NodeCache(self._cache_folder, run.cache_bytes, self.counters)
        index = course.index_at(state.step)
        stage = self.recipe.stages[index]
        size, captions = stage.batch_size, self.recipe.captions(stage)
        # Where the end is not fixed it may come later than is decided now: the trainer closes the
        # loader at the end, and no sample is lost, for positions travel with batches.
        steps = (
            range(state.step, course.ends[index])
            if self.recipe.is_fixed
            else itertools.count(state.step)
        )
        plans = (StepPlan(step, size, captions) for step in steps)
        corpus = self.stages[index]
        return Loader(
            corpus,
            Shards(corpus, cache, self.counters, processes=rank.local_world),
            state.data,
            plans,
            seed=self.recipe.seed,
            rank=rank.rank,
            world=rank.world,
            threads=_threads(rank),
            pinned=rank.device.type == "cuda",
            says=says,
        )

    def read_validation(
        self, stage: int, read: Callable[[int], None]
    ) -> tuple[ValidationBatch, ...]:
        """This rank's part of the samples that are held out, as a stage has them, each with the
        caption that the stage draws most (`most_drawn`); `read` hears how many are here."""
        run, rank, corpus = self.settings.run, self.rank, self.stages[stage]
        caption = most_drawn(self.recipe.captions(self.recipe.stages[stage]))
        cache = NodeCache(self._cache_folder, run.cache_bytes, self.counters)
        shards = Shards(corpus, cache, self.counters, processes=rank.local_world)
        try:
            return read_validation(corpus, shards, rank.rank, rank.world, read, caption)
        finally:
            shards.close()

    # --- state ----------------------------------------------------------------------------------

    def _expected(self) -> Expected:
        run = self.settings.run
        return Expected(
            run.uid,
            self.recipe.hash,
            self.corpus.fingerprint,
            recipe=json.loads(self.recipe.to_json()),
            data=json.loads(self.corpus.description.to_json()),
            accepted=frozenset(run.accept_changes),
        )

    def _source(self) -> Source | None:
        run = self.settings.run
        if run.resume_from is None:
            return None
        options = self.settings.storage_options("checkpoint")
        return Source.of(run.resume_from, run.uid, options, self.storage.moved)

    def tensors(self) -> dict[str, Any]:
        """Everything that a commit holds as tensors: the live ones, not copies."""
        found = {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizers),
            "ema": dict(self.ema.shadow),
        }
        return found if self.power is None else found | {"power": self.power.tensors()}

    def reserve(self, fresh: bool) -> None:
        """Takes the memory that saves need before the first one; `fresh`: nothing was loaded."""
        self.checkpointer.reserve(self.tensors())
        if fresh:
            # To know its tensors torch has taken a step of nothing, which an optimizer would count.
            for optimizer in self.optimizers:
                optimizer.state.clear()

    def load(self, commit: Commit) -> Journal:
        """Weights, optimizer and average as the commit has them; returns its journal."""
        tensors = self.tensors()
        journal = self.checkpointer.load(commit, tensors)
        set_optimizer_state_dict(self.model, self.optimizers, optim_state_dict=tensors["optimizer"])
        return journal

    def warm_up(self, done: Callable[[int], None]) -> None:
        """Compiles every shape of the run before its first step; logs the attention kernel. `done`
        hears how many shapes are done."""
        run, recipe = self.settings.run, self.recipe
        shapes = [
            Shape(*corpus.size(bucket), stage.batch_size, number, tokens)
            for number, (stage, corpus) in enumerate(zip(recipe.stages, self.stages, strict=True))
            for bucket in corpus.buckets
            for tokens in self.text.padding.lengths
        ]
        if self.rank.is_first:
            largest = max(shapes, key=lambda shape: shape.height * shape.width)
            self._log_attention(largest.height, largest.width)
        if run.compute.compile == "none":
            return
        folder = self.storage.child(f"{run_folder(run.uid)}/compiled")
        key = artifacts_key(recipe.hash, run.compute, self.rank.device)
        units, artifacts = len(self.model.units), Artifacts(folder, key)
        warm_up(self.step, shapes, units, self.rank, dist.group.WORLD, artifacts, done)

    def _log_attention(self, height: int, width: int) -> None:
        denoiser, queries = self.recipe.denoiser, self.recipe.tokens(height, width)
        call = AttentionCall(
            heads=denoiser.heads,
            head_dim=denoiser.hidden_size // denoiser.heads,
            queries=queries,
            # Sana's attention over the image is linear, and no kernel of torch's.
            keys=self.recipe.text.max_tokens + (queries if denoiser.kind == "prx" else 0),
            masked=True,
        )
        log_backend(call, self.rank.device, self.dtype)

    def enter(self, stage: int) -> None:
        """Steps from here on are of this stage. Frozen networks that neither it nor a later one
        needs are let go.

        Raises:
            RecipeError, HubUnreachableError: one that was let go is needed again after a roll-back,
                and cannot be loaded.
        """
        self.step.seers = self.step.seers.for_stages(self.recipe, stage, self.rank.device)
        self.step.enter(stage)

    def stage_work(self) -> list[float]:
        """FLOPs of training on an image of each stage, at its largest bucket. Leaves the step in
        the last stage."""
        work = []
        for number, corpus in enumerate(self.stages):
            self.step.enter(number)
            largest = max(map(corpus.size, corpus.buckets), key=lambda size: size[0] * size[1])
            work.append(self.sample_flops(*largest).model)
        return work

    @property
    def frozen_parameters(self) -> int:
        """Of what is exported with the model: a frozen text encoder, an autoencoder."""
        modules = [] if self.text.trained else [self.text.encoder]
        if self.autoencoder is not None:
            modules.append(self.autoencoder.module)
        return sum(weight.numel() for module in modules for weight in module.parameters())

    @cached_property
    def caption_lengths(self) -> CaptionLengths | None:
        """As the data's cards tell them; None where they do not."""
        largest = max(stage.batch_size for stage in self.recipe.stages)
        rows = microbatch.plan(
            largest, self.rank.world, self.settings.run.compute.device_batch_size
        ).rows
        return text_report.lengths(
            self.recipe.text, self.text, self.corpus.caption_sample, rows, self.recipe.seed
        )

    def sample_flops(self, height: int, width: int) -> SampleFlops:
        """Of a sample of this size in the step's stage, its caption padded as captions are on
        average; a frozen encoder's are counted by running it once."""
        lengths = self.caption_lengths
        tokens = self.recipe.text.max_tokens if lengths is None else round(lengths.padded)
        return flops.per_sample(
            self.recipe,
            height=height,
            width=width,
            text_width=self.text.hidden_size,
            frozen_text=self._frozen_text_flops(tokens),
            text_tokens=tokens,
            tricks=self.step.tricks,
            teacher_width=self.model.teacher_width,
        )

    def _frozen_text_flops(self, tokens: int) -> float:
        if self.text.trained or self.recipe.text.precomputed:
            return 0.0
        ids = torch.zeros(1, tokens, dtype=torch.int64, device=self.rank.device)
        return flops.counted(lambda: self.text.encode(ids, torch.ones_like(ids, dtype=torch.bool)))


def _threads(rank: Rank) -> int:
    """Decoding threads of a rank: its part of the node's processors, and no more than help."""
    own = len(os.sched_getaffinity(0)) // rank.local_world
    return max(1, min(_DECODING_THREADS, own))
