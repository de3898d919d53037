"""Images drawn for the captions of validation samples, compared with the samples themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from daybreak_trainer.contract import MetricScore
from daybreak_trainer.data.holdout import Indices
from daybreak_trainer.data.index import IMAGE
from daybreak_trainer.data.validation import ValidationBatch
from daybreak_trainer.evaluate.batches import Images
from daybreak_trainer.evaluate.draw import Drawer
from daybreak_trainer.evaluate.metrics.extractors import Extractor, Features
from daybreak_trainer.evaluate.metrics.scores import FeatureSet, scores
from daybreak_trainer.parallel.process_group import Rank


class Comparison:
    """Each rank draws for its samples and extracts their features, the first one scores them."""

    def __init__(self, extractors: Sequence[Extractor], rank: Rank) -> None:
        self._extractors, self._rank = extractors, rank
        self._real: dict[tuple[str, tuple[int, int]], Features] = {}
        """By extractor and bucket: of all ranks' samples, which stay the same."""

    def forget(self) -> None:
        """The samples are others from here on."""
        self._real.clear()

    def scores(
        self,
        batches: Sequence[ValidationBatch],
        drawer: Drawer,
        seed: int,
        moved: Callable[[int], None],
    ) -> tuple[MetricScore, ...]:
        """Of every extractor, on the first rank; a collective. `moved` as the drawer calls it."""
        if not self._extractors or not batches:
            return ()
        drawn = [_drawn(batch, drawer, seed, moved) for batch in batches]
        found: list[MetricScore] = []
        for extractor in self._extractors:
            extractor.model.to(self._rank.device)
            try:
                seen = [
                    self._seen(extractor, batch, images)
                    for batch, images in zip(batches, drawn, strict=True)
                ]
            finally:
                extractor.model.to("cpu")
            if self._rank.is_first:
                found += scores(extractor, _joined(seen))
        return tuple(found)

    def _seen(self, extractor: Extractor, batch: ValidationBatch, drawn: Images) -> FeatureSet:
        """Of all ranks' samples, on every rank."""
        key, device = (extractor.kind, batch.bucket), self._rank.device
        if key not in self._real:
            images = batch.tensors[IMAGE][: batch.own].permute(0, 2, 3, 1).numpy()
            self._real[key] = self._gathered(
                extractor.images(images, device) if batch.own else None
            )
        texts = None
        if extractor.tokenizer is not None:
            captions = batch.captions[: batch.own]
            texts = self._gathered(extractor.texts(captions, device) if batch.own else None)
        seen = self._gathered(extractor.images(drawn, device) if batch.own else None)
        return FeatureSet(self._real[key], seen, texts)

    def _gathered(self, own: Features | None) -> Features:
        parts: list[Any] = [None] * self._rank.world
        dist.all_gather_object(parts, own)
        return np.concatenate([part for part in parts if part is not None])


def _drawn(
    batch: ValidationBatch, drawer: Drawer, seed: int, moved: Callable[[int], None]
) -> Images:
    """This rank's own; it draws as many as the rank that has most."""
    rows = np.minimum(np.arange(batch.rows), len(batch.captions) - 1)
    numbers: Indices = batch.numbers[rows]
    captions = [batch.captions[row] for row in rows]
    return drawer.draw(captions, numbers.tolist(), batch.bucket, seed, moved)[: batch.own]


def _joined(seen: Sequence[FeatureSet]) -> FeatureSet:
    """Of all buckets."""
    texts = [one.texts for one in seen if one.texts is not None]
    return FeatureSet(
        np.concatenate([one.real for one in seen]),
        np.concatenate([one.drawn for one in seen]),
        np.concatenate(texts) if texts else None,
    )
