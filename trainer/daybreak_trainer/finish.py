"""What follows the last step: export the averaged weights, draw from the export, judge it.

The export is what gets judged, built as a user would load it. All ranks draw, on their devices;
what follows is the first rank's alone, and the others end: no device waits for an upload.

What a node holds for it, beside what training left there: on each rank that draws one pipeline, in
the export's precision, on that rank's device. Weights are gathered on the devices too, tensor by
tensor, into the pipelines' own. So with GPUs the host holds the pipeline of the first rank alone,
while it is written, and for a moment each rank's autoencoder; on CPUs it holds as many pipelines as
ranks draw. A frozen text encoder moves, and is held once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import Evaluation
from daybreak_trainer.data.description import CorpusDescription
from daybreak_trainer.evaluate.batches import Images
from daybreak_trainer.evaluate.grid import save_grid
from daybreak_trainer.evaluate.sampler import sample
from daybreak_trainer.evaluate.score import evaluate_images, heldout_prompts
from daybreak_trainer.export import pipeline as export
from daybreak_trainer.export.model_card import CARD, About, model_card
from daybreak_trainer.export.publish import ExportCard, check, publish
from daybreak_trainer.health.heartbeat import Heartbeat, Phase
from daybreak_trainer.models import autoencoder as autoencoders
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.progress import ProgressReporter
from daybreak_trainer.settings import Settings
from daybreak_trainer.telemetry.ledger import Ledger

SAMPLES_FILE = "samples.png"
EVALUATION_FILE = "evaluation.json"
_GRID_IMAGES = 36
_SAMPLING_SEED = 20_000


class Finisher:
    def __init__(
        self,
        settings: Settings,
        rank: Rank,
        text: TextTower,
        progress: ProgressReporter,
        heartbeat: Heartbeat,
        ledger: Ledger,
        corpus: CorpusDescription,
        autoencoder: Autoencoder | None,
    ) -> None:
        self._settings, self._rank = settings, rank
        self._text, self._progress, self._heartbeat = text, progress, heartbeat
        self._ledger = ledger
        self._corpus, self._autoencoder = corpus, autoencoder

    def check(self) -> None:
        """Before a day of training.

        Raises:
            ExportTakenError: the place is another run's.
            RecipeError: stock diffusers could not draw with what would be trained.
        """
        run = self._settings.run
        export.check(self._settings.recipe, self._autoencoder)
        if (storage := self._storage()) is not None:
            check(storage, run.name, run.uid)

    def _storage(self) -> Storage | None:
        url = self._settings.run.export_url
        return Storage(url, self._settings.storage_options("export")) if url else None

    def finish(
        self,
        step: int,
        samples: int,
        shadow: dict[str, Tensor],
        device_seconds: Callable[[Mapping[str, float]], float],
    ) -> None:
        """Exports, samples and scores; a collective until the images are drawn. `device_seconds`
        are what the run came to by a ledger."""
        prompts = self._heldout()
        with self._ledger.during("export"):
            pipeline = self._pipeline(shadow, len(self._texts(prompts)))
        with self._ledger.during("evaluation"):
            self._progress.phase("Evaluating")
            self._heartbeat.enter(Phase.EVALUATING)
            images = self._drawn(pipeline, self._texts(prompts))
        if not self._rank.is_first:
            return
        with self._ledger.during("export"):
            folder = export.scratch_folder(self._settings.work_dir)
            try:
                export.save_folder(pipeline.to("cpu"), self._settings.recipe, folder)
                with self._ledger.during("evaluation"):
                    evaluation = self._judge(step, images, prompts, folder)
                self._describe(step, samples, evaluation, device_seconds, folder)
                self._publish(step, folder)
            finally:
                export.drop(folder)

    def _pipeline(self, shadow: dict[str, Tensor], images: int) -> Any:
        """On this rank's device; None where none of so many images is this rank's to draw, for it
        would be a whole model more in its memory."""
        self._progress.phase("Exporting")
        self._heartbeat.enter(Phase.EXPORTING)
        weights = export.Gathered(shadow)
        if not (self._rank.is_first or self._rank.rank < images):
            weights.pass_by()
            return None
        pipeline: Any = export.build_pipeline(
            self._settings.recipe,
            weights,
            self._text,
            self._fresh_autoencoder(),
            device=self._rank.device,
            dtype=export.DTYPES[self._settings.run.export_dtype],
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _fresh_autoencoder(self) -> Autoencoder | None:
        """Training's own may have become less precise than the export is to be."""
        latent = self._settings.recipe.latent
        return None if latent is None else autoencoders.build(latent)

    def _describe(
        self,
        step: int,
        samples: int,
        evaluation: Evaluation | None,
        device_seconds: Callable[[Mapping[str, float]], float],
        folder: Path,
    ) -> None:
        """Writes the model card."""
        recipe, run, device = self._settings.recipe, self._settings.run, self._rank.device
        seconds = self._ledger.seconds()
        about = About(
            name=run.name,
            step=step,
            samples=samples,
            average=f"exponential moving average with a decay of {recipe.ema.decay:g} a step",
            dtype=run.export_dtype,
            corpus=self._corpus,
            seconds=seconds,
            device_seconds=device_seconds(seconds),
            price=run.budget.gpu_hour_price,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            evaluation=evaluation,
            validation=self._progress.validation,
            grid=SAMPLES_FILE if (folder / SAMPLES_FILE).exists() else "",
        )
        (folder / CARD).write_text(model_card(recipe, about))

    def _publish(self, step: int, folder: Path) -> None:
        if (storage := self._storage()) is None:
            return
        run = self._settings.run
        card = ExportCard(
            uid=run.uid,
            run=run.name,
            namespace=run.namespace,
            recipe_hash=run.recipe_hash,
            step=step,
            weights=run.export_dtype,
        )
        self._heartbeat.enter(Phase.EXPORTING, storage.url)
        url = publish(folder, storage, run.name, card, copied=self._heartbeat.moved)
        self._progress.exported(url)

    def _heldout(self) -> list[Any]:
        benchmark = self._settings.run.evaluation.benchmark
        return [] if benchmark is None else list(heldout_prompts(benchmark))

    def _texts(self, prompts: list[Any]) -> list[str]:
        """Of all images to draw."""
        evaluation = self._settings.run.evaluation
        return [p.prompt for p in prompts] + _repeated(evaluation.prompts, evaluation.images)

    def _drawn(self, pipeline: Any, texts: list[str]) -> Images | None:
        """Images of all texts on rank 0, each rank drawing its part."""
        if not texts:
            return None
        sampling = self._settings.recipe.sampling
        mine = list(range(len(texts)))[self._rank.rank :: self._rank.world]
        part = (
            sample(
                pipeline,
                [texts[number] for number in mine],
                steps=sampling.steps,
                guidance=sampling.guidance,
                seed=_SAMPLING_SEED,
                numbers=mine,
                progress=lambda done, _: self._heartbeat.moved(done),
            )
            if mine
            else None
        )
        parts: list[Any] = [None] * self._rank.world
        dist.all_gather_object(parts, part)
        first = next(p for p in parts if p is not None)
        images = np.empty((len(texts), *first.shape[1:]), dtype=np.uint8)
        for number, drawn in enumerate(parts):
            if drawn is not None:
                images[number :: self._rank.world] = drawn
        return images

    def _judge(
        self, step: int, images: Images | None, prompts: list[Any], folder: Path
    ) -> Evaluation | None:
        if images is None:
            return None
        evaluation = self._settings.run.evaluation
        labels = self._texts(prompts)
        shown = min(_GRID_IMAGES, len(labels))
        chosen = [number * len(labels) // shown for number in range(shown)]
        save_grid(images[chosen], [labels[i] for i in chosen], folder / SAMPLES_FILE)
        if evaluation.benchmark is None:
            return None
        score = evaluate_images(evaluation.benchmark, images[: len(prompts)], prompts)
        result = Evaluation(
            benchmark=evaluation.benchmark,
            step=step,
            alignment=score.alignment,
            alignment_by_tag=score.alignment_by_tag,
            judge_accuracy=score.judge_accuracy,
            images=len(prompts),
        )
        (folder / EVALUATION_FILE).write_text(
            json.dumps(json.loads(result.to_json()), indent=2) + "\n"
        )
        self._progress.evaluated(result)
        return result


def _repeated(prompts: tuple[str, ...], images: int) -> list[str]:
    """`images` prompts, the given ones in turn."""
    return [prompts[number % len(prompts)] for number in range(images)] if prompts else []
