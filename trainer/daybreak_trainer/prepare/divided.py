"""A source cut into parts that are prepared apart from each other, each into a folder of its own.

Where the cuts are depends on the source alone, never on how many pods share the work: so the same
request makes the same dataset whatever shares it, and a pod that goes on where another one was
stopped finds the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from daybreak_trainer.contract import PrepareSettings
from daybreak_trainer.data.card import DatasetCard
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import IMAGE
from daybreak_trainer.prepare import folder
from daybreak_trainer.prepare.datasets import is_dataset, prepare_datasets
from daybreak_trainer.prepare.prepare import GENERATORS, total
from daybreak_trainer.prepare.rewrite import NewColumn, open_source, rewrite

_PARTS = 64
"""Of a source of middling size: enough for as many pods, and little to do again after a crash."""
_LEAST_SAMPLES, _MOST_SAMPLES = 256, 16_384
"""Of a part: a shard should not be tiny, and a part has to fit on a scratch volume."""
_MOST_SHARDS = 16


def cut(number: int, least: int, most: int) -> tuple[range, ...]:
    """`number` things in parts of equally many, but for the last one."""
    size = min(most, max(least, -(-number // _PARTS)))
    return tuple(range(begin, min(begin + size, number)) for begin in range(0, number, size))


class Divided:
    """Reads what there is of a source when it is made, and prepares parts of it."""

    def __init__(self, settings: PrepareSettings, options: Mapping[str, Any]) -> None:
        """`options`: of the source's store.

        Raises:
            DatasetError, DataUnavailableError: as reading the source raises them, or the settings
                do not fit it.
        """
        self._settings, self._options = settings, options
        self._images: Sequence[folder.Listed] | None = None
        source = settings.source
        self.is_dataset = is_dataset(source)
        """Whether it is one that gets more columns."""
        if self.is_dataset:
            self._check_dataset()
            opened = open_source(source, options)
            self.parts = cut(len(opened.shards), 1, _MOST_SHARDS)
            self.fingerprint = opened.corpus.fingerprint
            return
        if source not in GENERATORS and Path(source).is_dir():
            self._images = folder.listed(Path(source))
        number = total(source, settings.count, self._images)
        self.parts = cut(number, _LEAST_SAMPLES, _MOST_SAMPLES)
        self.fingerprint = self._names()

    def _check_dataset(self) -> None:
        if self._settings.resolution is not None:
            raise DatasetError(
                f"{self._settings.source}: is a dataset already, so its resolution is settled; "
                "leave data.prepare.resolution out"
            )
        if not (self._settings.latents or self._settings.embeddings):
            raise DatasetError(
                f"{self._settings.source}: is a dataset already; say what to add, as "
                "data.prepare.latents, or let the stream read it as it is"
            )

    def _names(self) -> str:
        """Tells folders apart by their images and index; what is in other files is not read."""
        if self._images is None:
            return ""
        root, digest = Path(self._settings.source), xxhash.xxh3_128()
        for item in self._images:
            file = item.file if isinstance(item, folder.Captioned) else item
            captions = dict(item.captions) if isinstance(item, folder.Captioned) else {}
            digest.update(f"{file.relative_to(root)}\0{sorted(captions.items())}\n".encode())
        return digest.hexdigest()

    def make(self, part: range, out: Path) -> DatasetCard:
        """Prepares a part into the folder `out`, which is new.

        Raises:
            BadDataError, DataUnavailableError, RecipeError, HubUnreachableError: as preparing does.
        """
        told = self._settings
        if self.is_dataset:
            dropped = frozenset({IMAGE}) if told.drop_images else frozenset[str]()
            return rewrite(told.source, out, self._added, dropped, options=self._options, part=part)
        cards = prepare_datasets(
            told.source,
            out,
            [told.resolution] if told.resolution is not None else [],
            added=self._added,
            drop_images=told.drop_images,
            count=told.count,
            seed=told.seed,
            in_buckets=told.buckets,
            multiple=told.multiple,
            encoding=told.encoding,
            jpeg_quality=told.jpeg_quality,
            shard_bytes=told.shard_bytes,
            skip_unreadable=told.skip_unreadable,
            part=part,
            images=self._images,
        )
        return cards[out]

    @cached_property
    def _added(self) -> list[NewColumn]:
        """Models are loaded with the first part that needs them."""
        added: list[NewColumn] = []
        if self._settings.latents is not None:
            from daybreak_trainer.models.autoencoder import load
            from daybreak_trainer.prepare.latents import LatentColumn

            added.append(LatentColumn(load(self._settings.latents, "data.prepare.latents")))
        if (told := self._settings.embeddings) is not None:
            from daybreak_trainer.prepare.embeddings import Embedder, EmbeddingColumn

            embedder = Embedder(
                told.encoder, told.max_tokens, told.precision, lower_case=told.lower_case
            )
            added += [EmbeddingColumn(embedder, name) for name in dict.fromkeys(told.captions)]
        return added
