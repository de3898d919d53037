"""Makes one corpus of the datasets of a run, and refuses those that do not fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from daybreak_trainer.data import texts
from daybreak_trainer.data.corpus import Corpus, Shard
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Dataset, Stream, open_dataset
from daybreak_trainer.data.description import CorpusDescription
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.holdout import shares, tails
from daybreak_trainer.data.index import CAPTION, TensorColumn
from daybreak_trainer.data.retry import RetryPolicy


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
    opened = [open_dataset(stream, counters, policy) for stream in streams]
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


def _numbered(datasets: Sequence[Dataset]) -> tuple[Shard, ...]:
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
