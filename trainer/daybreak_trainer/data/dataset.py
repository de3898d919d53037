"""One dataset of a corpus: the small files that say what it is, read and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from daybreak_trainer.data.card import CARD, INDEX, SKIP, DatasetCard, bucket_name, bucket_size
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.description import StreamDescription, digest
from daybreak_trainer.data.errors import DatasetError, DataUnavailableError
from daybreak_trainer.data.index import ShardInfo, parse_index
from daybreak_trainer.data.order import Indices
from daybreak_trainer.data.retry import RetryPolicy, is_transient
from daybreak_trainer.data.skip import parse_skips
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


@dataclass(frozen=True)
class Dataset:
    card: DatasetCard
    shards: tuple[ShardInfo, ...]
    skips: Mapping[int, Indices]
    buckets: Mapping[str, str]
    """The bucket of each shard, by the shard's name."""
    store: Store
    description: StreamDescription


def open_dataset(stream: Stream, counters: DataCounters, policy: RetryPolicy) -> Dataset:
    """Its shards are read when they are needed, with `policy`; the small files are waited for less.

    Raises:
        DatasetError: it cannot be opened or trained on.
        DataUnavailableError: its store did not answer.
    """
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
    return Dataset(card, shards, skips, buckets, store, description)


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
