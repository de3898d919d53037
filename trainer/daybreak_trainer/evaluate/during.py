"""Judges the averaged weights while the run trains: validation loss, drawn samples, scores.

All ranks take part, on the sharded model itself. It changes nothing that training depends on:
weights come back to the bit, random numbers are drawn from generators of its own, and no gradient
or optimizer state is touched.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from daybreak_trainer.checkpoint.layout import run_folder, step_folder
from daybreak_trainer.contract import MetricScore, Validation
from daybreak_trainer.data.holdout import Indices
from daybreak_trainer.data.validation import ValidationBatch
from daybreak_trainer.engine import Engine
from daybreak_trainer.evaluate.averaged import averaged
from daybreak_trainer.evaluate.batches import Images
from daybreak_trainer.evaluate.comparison import Comparison
from daybreak_trainer.evaluate.draw import Drawer
from daybreak_trainer.evaluate.due import EvaluationDue
from daybreak_trainer.evaluate.encoded import EncodedPrompts
from daybreak_trainer.evaluate.grid import save_grid
from daybreak_trainer.evaluate.metrics.extractors import load_extractors
from daybreak_trainer.evaluate.metrics.scores import described
from daybreak_trainer.evaluate.score import (
    HeldOutPrompt,
    alignment_by_tag,
    heldout_prompts,
    mean,
)
from daybreak_trainer.evaluate.validate import ValidationLoss, validation_loss
from daybreak_trainer.health.heartbeat import Heartbeat, Phase
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.models.text import Conditioner
from daybreak_trainer.stores.errors import StorageError
from daybreak_trainer.telemetry import log

SAMPLES_FOLDER = "samples"
"""Beside the attempts of the run: `step-00002000.png`, and `.json` with the prompts."""
SAMPLING_SEED = 20_000
_GRID_IMAGES = 36
_ROWS = 16
"""Images that a device takes at once, where the run does not say fewer."""


class EvaluationStoppedError(Exception):
    """A rank was asked to stop: weights are back, nothing was judged."""


class RunEvaluator:
    """Built by all ranks together, after the engine.

    Raises:
        SettingsError, RecipeError, HubUnreachableError: an extractor or the autoencoder cannot be
            loaded.
    """

    def __init__(self, engine: Engine, heartbeat: Heartbeat, stops: Callable[[], bool]) -> None:
        """`stops` says whether this rank was asked to stop: a commit has to come before the grace
        period is over, and an evaluation has not."""
        run = engine.settings.run
        self._stops = stops
        self._engine, self._rank, self._heartbeat = engine, engine.rank, heartbeat
        self._settings = run.evaluation
        self.due = EvaluationDue(self._settings.interval_seconds, self._settings.interval_steps)
        self._storage = engine.storage.child(f"{run_folder(run.uid)}/{SAMPLES_FOLDER}")
        self._comparison = Comparison(load_extractors(self._settings.extractors), self._rank)
        self._autoencoder = engine.autoencoder
        self._prompts: tuple[HeldOutPrompt, ...] = ()
        if self._settings.benchmark is not None:
            self._prompts = tuple(heldout_prompts(self._settings.benchmark))
        self._read: tuple[int, tuple[ValidationBatch, ...]] | None = None
        self._rows = min(_ROWS, run.compute.device_batch_size or _ROWS)
        self._encoded: EncodedPrompts | None = None
        """Where the encoder is kept for the export alone."""
        if engine.recipe.text.precomputed:
            self._encoded = EncodedPrompts(engine.text, self._rank.device, engine.dtype)

    @property
    def validates(self) -> bool:
        return self._settings.validation_samples > 0

    @property
    def is_on(self) -> bool:
        """Whether there is anything to judge."""
        return self.validates or bool(self._settings.prompts or self._prompts)

    def run(self, step: int, stage: int, *, draws: bool) -> Validation:
        """Judges the weights after `step` steps; a collective. With `draws` the grid is drawn and
        the benchmark scored, as the finished model's export is anyway.

        Raises:
            ShardError, DataUnavailableError: the validation samples cannot be read.
            EvaluationStoppedError: on all ranks, where any was asked to stop.
        """
        started = time.monotonic()
        self._heartbeat.enter(Phase.EVALUATING)
        batches = self._batches(stage)
        self._hold(batches)
        self._engine.checkpointer.before_update()  # which may still copy the weights
        with averaged(self._engine.model, self._engine.ema), self._decoder_on_device():
            loss = self._loss(batches)
            by_tag = self._grid(step, self._engine.recipe.stages[stage].resolution) if draws else {}
            metrics = self._comparison.scores(batches, self._drawer, SAMPLING_SEED, self._moved)
        found = _result(step, loss, by_tag, metrics, time.monotonic() - started)
        self.due.took(step, found.seconds)
        if self._rank.is_first:
            _say(found)
        return found

    def _hold(self, batches: Sequence[ValidationBatch]) -> None:
        """Has all prompts of an evaluation encoded, the empty one of guidance too."""
        if self._encoded is not None:
            captions = (caption for batch in batches for caption in batch.captions)
            self._encoded.hold(chain(captions, self._texts, ("",)), self._moved)

    @property
    def _text(self) -> Conditioner:
        return self._engine.text if self._encoded is None else self._encoded

    def _moved(self, done: int) -> None:
        """After each pass of the model, which all ranks make together."""
        self._heartbeat.moved(done)
        wish = torch.tensor(int(self._stops()))
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        if wish:
            raise EvaluationStoppedError

    # --- validation loss ------------------------------------------------------------------------

    def _batches(self, stage: int) -> tuple[ValidationBatch, ...]:
        """This rank's validation samples, read once for each stage."""
        if self._read is None or self._read[0] != stage:
            self._read = stage, self._engine.read_validation(stage, self._moved)
            self._comparison.forget()
        return self._read[1]

    def _loss(self, batches: Sequence[ValidationBatch]) -> ValidationLoss | None:
        engine = self._engine
        return validation_loss(
            engine.model,
            self._text,
            engine.recipe,
            batches,
            self._clean,
            self._rank,
            engine.dtype,
            self._rows,
            self._moved,
        )

    def _clean(self, batch: ValidationBatch, chosen: Indices) -> Tensor:
        """What the model works on: images in -1..1, or scaled latents; of these rows alone, for the
        device may have no room for all."""
        rows: Any = torch.from_numpy(chosen)
        device = self._rank.device
        return self._engine.clean.clean({n: t[rows].to(device) for n, t in batch.tensors.items()})

    @contextmanager
    def _decoder_on_device(self) -> Iterator[None]:
        if self._autoencoder is None:
            yield
            return
        self._autoencoder.module.to(self._rank.device)
        try:
            yield
        finally:
            self._autoencoder.module.to("cpu")

    # --- drawn samples --------------------------------------------------------------------------

    @property
    def _drawer(self) -> Drawer:
        engine = self._engine
        return Drawer(
            engine.recipe,
            engine.model,
            self._text,
            self._rank,
            engine.dtype,
            self._rows,
            _pixels(self._autoencoder),
        )

    @property
    def _texts(self) -> list[str]:
        """Of all images that are drawn for prompts: the benchmark's first."""
        given = self._settings
        return [p.prompt for p in self._prompts] + [
            given.prompts[n % len(given.prompts)] for n in range(given.images) if given.prompts
        ]

    def _grid(self, step: int, resolution: int) -> dict[str, float]:
        """Draws and writes the grid; the benchmark's score by tag, on the first rank."""
        given, texts = self._settings, self._texts
        if not texts:
            return {}
        size = (resolution, resolution)
        images = self._drawer.together(texts, size, SAMPLING_SEED, self._moved)
        if not self._rank.is_first:
            return {}
        self._write(step, images, texts)
        if given.benchmark is None:
            return {}
        return alignment_by_tag(given.benchmark, images[: len(self._prompts)], self._prompts)

    def _write(self, step: int, images: Images, texts: list[str]) -> None:
        """A grid that the store refuses is no reason to stop training."""
        shown = min(_GRID_IMAGES, len(texts))
        chosen = [number * len(texts) // shown for number in range(shown)]
        page = io.BytesIO()
        save_grid(images[chosen], [texts[n] for n in chosen], page)
        sampling = self._engine.recipe.sampling
        about = {
            "step": step,
            "weights": "average",
            "seed": SAMPLING_SEED,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "shift": sampling.shift,
            "images": [{"number": n, "prompt": texts[n]} for n in chosen],
        }
        name = step_folder(step)
        try:
            self._storage.write(f"{name}.png", page.getvalue())
            self._storage.write(f"{name}.json", (json.dumps(about, indent=2) + "\n").encode())
        except StorageError as error:
            log.event("samples_lost", url=f"{self._storage.url}/{name}.png", reason=str(error))


def _pixels(autoencoder: Autoencoder | None) -> Any:
    return (lambda x: x) if autoencoder is None else autoencoder.decode


def _result(
    step: int,
    loss: ValidationLoss | None,
    by_tag: dict[str, float],
    metrics: tuple[MetricScore, ...],
    seconds: float,
) -> Validation:
    """A loss that is no number is left out: the run's own checks see to it."""
    finite = loss is not None and math.isfinite(loss.loss)
    return Validation(
        step=step,
        samples=loss.samples if loss is not None else 0,
        loss=loss.loss if loss is not None and finite else None,
        bins=loss.bins if loss is not None and finite else {},
        alignment=mean(by_tag) if by_tag else None,
        alignment_by_tag=by_tag,
        metrics=metrics,
        seconds=round(seconds, 3),
    )


def _say(found: Validation) -> None:
    log.event(
        "validated",
        loss=found.loss,
        bins={name: round(value, 5) for name, value in found.bins.items()},
        samples=found.samples,
        alignment=found.alignment,
        metrics=described(found.metrics),
        seconds=found.seconds,
    )
