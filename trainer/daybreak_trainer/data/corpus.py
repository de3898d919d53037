"""Everything a run trains on: the shards of all its streams, and what they have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from daybreak_trainer.data.card import DatasetCard, TextEmbeddings, bucket_size
from daybreak_trainer.data.description import CorpusDescription
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.holdout import HeldOut
from daybreak_trainer.data.index import ShardInfo, TensorColumn
from daybreak_trainer.data.order import Cell, Indices, SampleOrder
from daybreak_trainer.data.skip import nth_kept
from daybreak_trainer.data.store import Store


@dataclass(frozen=True, eq=False)
class Shard:
    number: int
    """In the corpus."""
    first: int
    """Number in the corpus of its first sample, skipped ones included."""
    stream: int
    store: Store
    dataset: str
    """Hash of the index that lists it: keeps datasets apart in the cache."""
    info: ShardInfo
    bucket: str
    skipped: Indices | None
    resolution: int
    """Of its dataset, pixels."""
    held_out: int = 0
    """Samples at its end that are for validation, skipped ones included."""

    @property
    def where(self) -> str:
        return f"{self.store.url}/{self.info.stored.name}"

    @property
    def kept(self) -> int:
        """Samples that are trained on."""
        end = self.info.samples - self.held_out
        return end - (0 if self.skipped is None else int((self.skipped < end).sum()))

    @property
    def for_validation(self) -> Indices:
        """Numbers in the shard of the samples that are held out and not skipped."""
        numbers = np.arange(self.info.samples - self.held_out, self.info.samples, dtype=np.int64)
        return numbers if self.skipped is None else np.setdiff1d(numbers, self.skipped)

    def numbers(self, ordinals: Indices) -> Indices:
        """Numbers in the shard of its `ordinals`-th samples that are not skipped."""
        return ordinals if self.skipped is None else nth_kept(ordinals, self.skipped)


@dataclass(frozen=True, eq=False)
class Corpus:
    """All shards of a run, of which the datasets of one resolution are drawn from: `at` gives
    what a stage at another resolution draws from. Numbers of shards and samples stay the same."""

    shards: tuple[Shard, ...]
    weights: tuple[float, ...]
    description: CorpusDescription
    cards: tuple[DatasetCard, ...]
    """Of each stream."""
    resolution: int
    """Of the datasets that are drawn from, pixels."""
    vocabulary: Mapping[str, int]
    """Words of all captions, sorted, and how often each stands in them; 1 where a card does not say
    so."""
    columns: Mapping[int, Mapping[str, tuple[TensorColumn, ...]]]
    """By resolution and bucket, what a batch holds beside captions."""
    caption_sample: Mapping[str, tuple[str, ...]]
    """Some captions of each column; none where the cards have none."""
    embeddings: TextEmbeddings | None
    """Of the captions, where they are read; all streams have the same."""
    reduction: int = 1
    """So many pixels a side are averaged to one."""

    @property
    def buckets(self) -> Mapping[str, tuple[TensorColumn, ...]]:
        """Of the datasets that are drawn from: what a batch of each bucket holds."""
        return self.columns[self.resolution]

    def size(self, bucket: str) -> tuple[int, int]:
        """Height and width in pixels of a batch's images."""
        height, width = bucket_size(bucket)
        return height // self.reduction, width // self.reduction

    def at(self, resolution: int) -> Corpus:
        """The corpus of a stage of this resolution: the datasets that have it; where none does,
        those of the smallest multiple of it, with images reduced by averaging.

        Raises:
            DatasetError: no dataset will do; the message says which there are.
        """
        chosen = source_of(resolution, self.columns)
        reduction = chosen // resolution
        for bucket, columns in self.columns[chosen].items():
            if reduction > 1 and (fixed := [c.name for c in columns if c.shape is not None]):
                raise DatasetError(
                    f"{fixed[0]} of the {chosen} px dataset cannot be reduced to {resolution} px; "
                    f"prepare the dataset with --resolution {resolution} too"
                )
            if any(side % reduction for side in bucket_size(bucket)):
                raise DatasetError(
                    f"bucket {bucket} of the {chosen} px dataset cannot be reduced to {resolution} "
                    f"px; prepare it with --buckets --multiple {reduction}, or with --resolution "
                    f"{resolution}"
                )
        return replace(self, resolution=chosen, reduction=reduction)

    @property
    def drawn(self) -> tuple[Shard, ...]:
        """The shards that are drawn from."""
        return tuple(shard for shard in self.shards if shard.resolution == self.resolution)

    @property
    def validation(self) -> tuple[HeldOut, ...]:
        """The samples that training never sees, by bucket; none where none are held out."""
        first, found = 0, []
        for bucket in sorted(self.buckets, key=bucket_size):
            parts = [(s.number, s.for_validation) for s in self.drawn if s.bucket == bucket]
            samples = np.concatenate([numbers for _, numbers in parts])
            if len(samples):
                shards = np.repeat([number for number, _ in parts], [len(n) for _, n in parts])
                numbers = np.arange(first, first + len(samples), dtype=np.int64)
                found.append(HeldOut(bucket, numbers, shards, samples))
                first += len(samples)
        return tuple(found)

    @property
    def fingerprint(self) -> str:
        return self.description.fingerprint

    def __len__(self) -> int:
        """Samples in all shards, without those that are skipped; held out ones too."""
        return sum(stream.samples for stream in self.description.streams)

    def order(self, seed: int) -> SampleOrder:
        """In which order a run with this seed sees the samples."""
        members: dict[tuple[int, str], list[Shard]] = {}
        for shard in self.drawn:
            if shard.kept:
                members.setdefault((shard.stream, shard.bucket), []).append(shard)
        cells = [
            Cell(
                stream,
                bucket,
                np.array([shard.number for shard in shards], dtype=np.int64),
                np.array([shard.kept for shard in shards], dtype=np.int64),
            )
            for (stream, bucket), shards in members.items()
        ]
        # Datasets of two resolutions may have a bucket of the same size.
        place = f"{self.resolution}px/" if len(self.columns) > 1 else ""
        return SampleOrder(cells, self.weights, seed, place)


def source_of(resolution: int, there: Collection[int]) -> int:
    """Which of the resolutions that there are a stage's images are made from: its own, else the
    smallest multiple.

    Raises:
        DatasetError: there is none.
    """
    multiples = [other for other in there if other % resolution == 0]
    if not multiples:
        listed = ", ".join(f"{other} px" for other in sorted(there))
        raise DatasetError(
            f"recipe.stages: one is of {resolution} px, and the datasets are of {listed}, of which "
            f"{resolution} divides none; prepare a dataset with --resolution {resolution}, or "
            "change the stage"
        )
    return min(multiples)
