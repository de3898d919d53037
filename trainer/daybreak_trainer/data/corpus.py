"""Everything a run trains on: the shards of all its streams, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from daybreak_trainer.data import texts
from daybreak_trainer.data.card import (
    CARD,
    INDEX,
    SKIP,
    DatasetCard,
    TextEmbeddings,
    bucket_name,
    bucket_size,
)
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.description import CorpusDescription, StreamDescription, digest
from daybreak_trainer.data.errors import DatasetError, DataUnavailableError
from daybreak_trainer.data.holdout import HeldOut, shares, tails
from daybreak_trainer.data.index import CAPTION, ShardInfo, TensorColumn, parse_index
from daybreak_trainer.data.order import Cell, Indices, SampleOrder
from daybreak_trainer.data.retry import RetryPolicy, is_transient
from daybreak_trainer.data.skip import nth_kept, parse_skips
from daybreak_trainer.data.store import Store
from daybreak_trainer.stores.errors import is_missing, said

_OPENING_SECONDS, _OPENING_STALL_SECONDS = 60.0, 30.0
"""For the small files that say what a dataset is: a mistake in an address should show soon."""


@dataclass(frozen=True)
class Stream:
    """Where a part of the corpus lies, and how much of it to draw."""

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    """Relative share of the samples drawn."""


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


@dataclass(frozen=True)
class _Dataset:
    card: DatasetCard
    shards: tuple[ShardInfo, ...]
    skips: Mapping[int, Indices]
    buckets: Mapping[str, str]
    """The bucket of each shard, by the shard's name."""
    store: Store
    description: StreamDescription


def open_corpus(
    streams: Sequence[Stream],
    counters: DataCounters,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
    columns: Sequence[str] | None = None,
    validation_samples: int = 0,
    captions: Sequence[str] = (CAPTION,),
    embeddings: bool = False,
) -> Corpus:
    """The corpus of these streams, at the smallest of their resolutions; shards are read when they
    are needed, with `policy`. Of what a batch can hold beside captions only `columns` is read;
    None: all there is. So many samples of each resolution, or a tenth where that is less, are held
    out of training (`holdout`). `captions` are the columns that captions come from, and with
    `embeddings` their embeddings are read too.

    Raises:
        DatasetError: a stream cannot be opened or trained on, has not all `columns`, or two do not
            fit together; nothing is left to train on.
        DataUnavailableError: a store did not answer.
    """
    opened = [_open(stream, counters, policy) for stream in streams]
    resolutions = sorted({dataset.card.resolution for dataset in opened})
    shards = _held_out(_numbered(opened), validation_samples)
    cards = [(dataset.store.url, dataset.card) for dataset in opened]
    texts.check(shards, captions, embeddings)
    return Corpus(
        shards=shards,
        weights=tuple(stream.weight for stream in streams),
        description=CorpusDescription(
            streams=tuple(d.description for d in opened),
            validation_samples=sum(shard.held_out for shard in shards),
        ),
        cards=tuple(dataset.card for dataset in opened),
        resolution=resolutions[0],
        vocabulary=texts.vocabulary([card for _, card in cards]),
        columns={
            resolution: _bucket_columns([s for s in shards if s.resolution == resolution], columns)
            for resolution in resolutions
        },
        caption_sample=texts.sample([card for _, card in cards]),
        embeddings=texts.embeddings_of(cards) if embeddings else None,
    )


def _open(stream: Stream, counters: DataCounters, policy: RetryPolicy) -> _Dataset:
    if not (math.isfinite(stream.weight) and stream.weight > 0):
        raise DatasetError(f"{stream.url}: weight {stream.weight:g} must be above 0")
    try:
        soon = replace(
            policy,
            total_seconds=min(policy.total_seconds, _OPENING_SECONDS),
            stall_seconds=min(policy.stall_seconds, _OPENING_STALL_SECONDS),
        )
        opening = Store(stream.url, stream.options, soon, counters)
        store = Store(stream.url, stream.options, policy, counters)
        raw = _read(opening, INDEX)
        card_raw = _read(opening, CARD)
        skip_raw = _read_optional(opening, SKIP)
    except DatasetError:
        raise
    except Exception as error:
        what = f"{stream.url}: cannot be opened: {said(error)}"
        if is_transient(error):
            raise DataUnavailableError(what) from error
        raise DatasetError(what) from error
    shards = parse_index(raw, f"{store.url}/{INDEX}")
    skip_file = f"{store.url}/{SKIP}"
    skips = parse_skips(skip_raw, skip_file, shards) if skip_raw is not None else {}
    card = _card(card_raw, store.url, sum(shard.samples for shard in shards))
    samples = card.samples - sum(len(skipped) for skipped in skips.values())
    if not samples:
        raise DatasetError(f"{skip_file}: leaves no samples")
    description = StreamDescription(
        url=store.url,
        weight=stream.weight,
        index=digest(raw),
        shards=len(shards),
        samples=samples,
        skips=digest(skip_raw) if skip_raw is not None else None,
        buckets=digest(repr(sorted(card.buckets.items())).encode()) if card.buckets else None,
        source=card.source,
        licence=card.licence,
        resolution=card.resolution,
    )
    buckets = _buckets(card, shards, f"{store.url}/{CARD}")
    return _Dataset(card, shards, skips, buckets, store, description)


def _read(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not (is_missing(error) or isinstance(error, NotADirectoryError)):
            raise
        raise DatasetError(
            f"{store.url}: there is no {name}; is this the folder that `daybreak prepare` wrote?"
        ) from None


def _read_optional(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        return None


def _card(raw: bytes, url: str, samples: int) -> DatasetCard:
    try:
        card = DatasetCard.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DatasetError(f"{url}/{CARD}: {where}: {first['msg']}") from None
    if card.samples != samples:
        raise DatasetError(
            f"{url}: {CARD} says {card.samples} samples, {INDEX} lists {samples}; they are not of "
            "one dataset, prepare it again"
        )
    return card


def _buckets(card: DatasetCard, shards: Sequence[ShardInfo], where: str) -> dict[str, str]:
    names = [shard.raw.name for shard in shards]
    if card.buckets is None:
        return dict.fromkeys(names, bucket_name(card.resolution, card.resolution))
    found: dict[str, str] = {}
    for bucket, members in card.buckets.items():
        try:
            bucket_size(bucket)
        except ValueError as error:
            raise DatasetError(f"{where}: buckets: {error}") from None
        for name in members:
            if name in found:
                raise DatasetError(f"{where}: shard {name} is in two buckets")
            found[name] = bucket
    if wrong := set(names) ^ set(found):
        raise DatasetError(
            f"{where}: buckets and {INDEX} do not list the same shards: {min(wrong)} is in one only"
        )
    return found


def _numbered(datasets: Sequence[_Dataset]) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    first = 0
    for stream, dataset in enumerate(datasets):
        for place, info in enumerate(dataset.shards):
            shards.append(
                Shard(
                    number=len(shards),
                    first=first,
                    stream=stream,
                    store=dataset.store,
                    dataset=dataset.description.index,
                    info=info,
                    bucket=dataset.buckets[info.raw.name],
                    skipped=dataset.skips.get(place),
                    resolution=dataset.card.resolution,
                )
            )
            first += info.samples
    return tuple(shards)


def _held_out(shards: tuple[Shard, ...], wanted: int) -> tuple[Shard, ...]:
    """With as many of each resolution held out: of datasets that were made from one source these
    are the same pictures."""
    found = list(shards)
    for resolution in {shard.resolution for shard in shards}:
        tier = [shard for shard in shards if shard.resolution == resolution]
        for shard in _tier_held_out(tier, wanted):
            found[shard.number] = shard
    return tuple(found)


def _tier_held_out(shards: Sequence[Shard], wanted: int) -> list[Shard]:
    cells: dict[tuple[int, str], list[Shard]] = {}
    for shard in shards:
        cells.setdefault((shard.stream, shard.bucket), []).append(shard)
    sizes = [sum(shard.info.samples for shard in cell) for cell in cells.values()]
    found = []
    for cell, share in zip(cells.values(), shares(sizes, wanted), strict=True):
        ends = tails([shard.info.samples for shard in cell], share)
        for shard, held_out in zip(cell, ends, strict=True):
            found.append(replace(shard, held_out=held_out))
    if not any(shard.kept for shard in found):
        raise DatasetError(
            f"{shards[0].store.url}: all samples that are not skipped are held out for validation; "
            "set evaluation.validationSamples to 0 or skip fewer"
        )
    return found


def _bucket_columns(
    shards: Sequence[Shard], wanted: Sequence[str] | None
) -> dict[str, tuple[TensorColumn, ...]]:
    """Raises DatasetError: a shard has not what is wanted, or shards of one bucket differ in what
    would be stacked."""
    found: dict[str, tuple[tuple[TensorColumn, ...], Shard]] = {}
    for shard in shards:
        columns = _read_columns(shard, wanted)
        known, example = found.setdefault(shard.bucket, (columns, shard))
        if differing := _layout(columns) ^ _layout(known):
            listed = ", ".join(sorted({name for name, _, _ in differing}))
            raise DatasetError(
                f"shard {shard.where} and shard {example.where} are of bucket {shard.bucket}, but "
                f"their columns differ in {listed}; a batch needs samples of one shape"
            )
    return {bucket: columns for bucket, (columns, _) in found.items()}


def _read_columns(shard: Shard, wanted: Sequence[str] | None) -> tuple[TensorColumn, ...]:
    there = {column.name: column for column in shard.info.columns.tensors}
    if wanted is None:
        return tuple(there.values())
    if lacking := [name for name in wanted if name not in there]:
        raise DatasetError(
            f"shard {shard.where} has no column {lacking[0]}, only {', '.join(there)}; training "
            "needs it in every shard"
        )
    return tuple(there[name] for name in wanted)


def _layout(
    columns: Sequence[TensorColumn],
) -> set[tuple[str, str, tuple[int, ...] | None]]:
    """What has to be the same where values are stacked; how an image is encoded has not."""
    return {(column.name, column.dtype, column.shape) for column in columns}
