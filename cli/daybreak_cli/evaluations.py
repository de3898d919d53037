"""What `daybreak evaluate` can do with a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

import typer
from rich.console import Console
from rich.table import Table

from daybreak_cli.errors import CommandError

if TYPE_CHECKING:  # the command answers at once: numpy is imported when needed
    import torch

    from daybreak_trainer.contract import ExtractorSettings
    from daybreak_trainer.evaluate.layouts import Images

Progress = Callable[[int, int], None]
_KINDS = ("inception", "clip", "dino")


@dataclass(frozen=True)
class Model:
    folder: Path
    pipeline: Any
    sampling: dict[str, Any]
    """Steps and guidance of its recipe."""
    seed: int
    device: torch.device
    """That the pipeline is on."""

    def draw(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> Images:
        from daybreak_trainer.evaluate.sampler import sample

        return sample(
            self.pipeline,
            prompts,
            seed=self.seed,
            numbers=numbers,
            progress=progress,
            **self.sampling,
        )


class Task(Protocol):
    def check(self) -> None:
        """Before a model is loaded. Raises CommandError."""

    def run(self, model: Model, progress: Progress) -> dict[str, Any]:
        """What goes to scripts. Raises CommandError."""


@dataclass(frozen=True)
class Alignment:
    """The share of images that show what a held-out prompt asks for."""

    benchmark: Literal["digits", "shapes"]
    samples: Path | None

    def check(self) -> None:
        """Nothing to find."""

    def run(self, model: Model, progress: Progress) -> dict[str, Any]:
        from daybreak_trainer.evaluate.grid import save_grid
        from daybreak_trainer.evaluate.score import evaluate_images, heldout_prompts

        prompts = heldout_prompts(self.benchmark)
        texts = [prompt.prompt for prompt in prompts]
        images = model.draw(texts, progress=progress)
        if self.samples is not None:
            save_grid(images, texts, self.samples)
        score = evaluate_images(self.benchmark, images, prompts)
        table = Table("tag", "alignment", "judge on real images")
        for tag, value in score.alignment_by_tag.items():
            table.add_row(tag, f"{value:.3f}", f"{score.judge_accuracy[tag]:.3f}")
        table.add_row("mean", f"{score.alignment:.3f}", "", style="bold")
        Console(stderr=True).print(table)
        return {"alignment": score.alignment, "alignmentByTag": score.alignment_by_tag}


def extractors(given: Sequence[str]) -> ExtractorSettings:
    """Of `KIND=PATH`."""
    from daybreak_trainer.contract import ExtractorSettings

    found = {}
    for text in given:
        kind, separator, path = text.partition("=")
        if not separator or not path or kind not in _KINDS:
            raise CommandError(
                f"--extractor {text}: must be inception=, clip= or dino= and a path or repository"
            )
        found[kind] = path
    return ExtractorSettings(**found)


@dataclass(frozen=True)
class Distances:
    """Drawn images against the last samples of a dataset, with their captions."""

    data: str
    images: int
    extractors: ExtractorSettings

    def check(self) -> None:
        """Nothing that could be found before it is loaded."""

    def run(self, model: Model, progress: Progress) -> dict[str, Any]:
        from daybreak_trainer.contract import MetricScore
        from daybreak_trainer.data.errors import BadDataError, DataUnavailableError
        from daybreak_trainer.evaluate.metrics.extractors import load_extractors
        from daybreak_trainer.evaluate.metrics.scores import FeatureSet, described, scores
        from daybreak_trainer.models.pretrained import HubUnreachableError
        from daybreak_trainer.settings import SettingsError

        try:
            loaded = load_extractors(self.extractors)
            real, captions = self._samples()
        except (SettingsError, BadDataError) as error:
            raise CommandError(str(error)) from None
        except (HubUnreachableError, DataUnavailableError) as error:
            raise CommandError(str(error), exit_code=1) from None
        drawn, device = model.draw(captions, progress=progress), model.device
        found: list[MetricScore] = []
        for one in loaded:
            one.model.to(device)
            texts = one.texts(captions, device) if one.tokenizer is not None else None
            seen = FeatureSet(one.images(real, device), one.images(drawn, device), texts)
            one.model.to("cpu")
            found += scores(one, seen)
        for line in described(found):
            typer.echo(line, err=True)
        return {"metrics": [score.model_dump(by_alias=True) for score in found]}

    def _samples(self) -> tuple[Images, list[str]]:
        """Images of one size and their captions, of the bucket that has most."""
        from daybreak_trainer.data.cache import NodeCache
        from daybreak_trainer.data.counters import DataCounters
        from daybreak_trainer.data.dataset import Stream
        from daybreak_trainer.data.index import IMAGE
        from daybreak_trainer.data.open_corpus import open_corpus
        from daybreak_trainer.data.shards import Shards
        from daybreak_trainer.data.validation import read_validation

        counters = DataCounters()
        corpus = open_corpus(
            [Stream(self.data)], counters, columns=(IMAGE,), validation_samples=self.images
        )
        with TemporaryDirectory() as folder:
            shards = Shards(corpus, NodeCache(Path(folder), None, counters), counters)
            try:
                batches = read_validation(corpus, shards, 0, 1, lambda _: None)
            finally:
                shards.close()
        if not batches or max(batch.total for batch in batches) < 2:
            raise CommandError(
                f"{self.data}: a tenth of it is compared with, and that is no two images"
            )
        most = max(batches, key=lambda batch: batch.total)
        return most.tensors[IMAGE].permute(0, 2, 3, 1).numpy(), list(most.captions)


@dataclass(frozen=True)
class Drawn:
    """Images for the scorer of a public benchmark."""

    kind: Literal["geneval", "dpg"]
    prompts: Path
    out: Path

    def check(self) -> None:
        self._prompts()

    def _prompts(self) -> Any:
        from daybreak_trainer.evaluate.prompt_sets import PromptsError, read_prompts

        try:
            return read_prompts(self.kind, self.prompts)
        except PromptsError as error:
            raise CommandError(str(error)) from None

    def run(self, model: Model, progress: Progress) -> dict[str, Any]:
        from daybreak_trainer.evaluate import layouts, stock

        prompts = self._prompts()
        note = layouts.DrawnNote(
            benchmark=self.kind,
            model=str(model.folder),
            model_digest=layouts.digest_of_model(model.folder),
            prompts=layouts.digest_of_prompts(prompts),
            prompt_count=len(prompts),
            images_a_prompt=layouts.IMAGES_A_PROMPT,
            seed=model.seed,
            steps=model.sampling["steps"],
            guidance=model.sampling["guidance"],
            resolution=stock.of(model.pipeline).pixels,
        )
        try:
            drawn = layouts.write_images(self.out, note, prompts, model.draw, progress)
        except layouts.OtherImagesError as error:
            raise CommandError(str(error)) from None
        return {"out": str(self.out), "prompts": len(prompts), "drawn": drawn}
