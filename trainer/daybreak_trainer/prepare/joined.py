"""Parts that were prepared apart become one dataset, in the place that training reads.

    <place>/prepared/request.json         what is prepared there, and of what
    <place>/shard.00003.00017.mds         a part's shards, under its number
    <place>/prepared/part-00003.json      written when all of them are there: the part counts
    <place>/index.json, dataset.json      written by whoever finds all parts there
    <place>/PREPARED.json                 written last: the dataset is whole

Two pods that write a file at the same time write the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from daybreak_trainer.checkpoint.changes import difference
from daybreak_trainer.checkpoint.layout import FileRecord, SealedMessage
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.data.card import CARD, INDEX, DatasetCard
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import HASH
from daybreak_trainer.prepare.texts import MOST_WORDS, SAMPLES
from daybreak_trainer.prepare.unreadable import REPORT, reported

PREPARED = "PREPARED.json"
_REQUEST = "prepared/request.json"
_UPLOADS = 8
_CHUNK_BYTES = 1 << 20
_Sealed = TypeVar("_Sealed", bound=SealedMessage)


class Request(SealedMessage):
    """Decides every byte of a dataset."""

    options: dict[str, Any]
    source: str
    """Fingerprint of what is read."""
    parts: int


class Part(SealedMessage):
    """A part that is there."""

    shards: tuple[dict[str, Any], ...]
    """What the index says of them."""
    card: DatasetCard
    skipped: tuple[dict[str, str], ...] = ()
    """Images that were left out, and why."""


class Prepared(SealedMessage):
    """A dataset that is whole."""

    request: Request
    samples: int
    files: dict[str, FileRecord]
    """Those that say what it is."""


class Place:
    """Where a dataset is put together."""

    def __init__(self, storage: Storage, request: Request) -> None:
        self._storage, self._request = storage, request

    @property
    def prepared(self) -> Prepared | None:
        """The dataset, if it is whole and of this request.

        Raises:
            DatasetError: it is of another request.
            StorageError: the store fails.
        """
        found = self._read(PREPARED, Prepared)
        if found is None:
            return None
        self._compare(found.request)
        whole = all(self._holds(name, record) for name, record in found.files.items())
        return found if whole else None

    def claim(self) -> None:
        """Says what is prepared here.

        Raises:
            DatasetError: something else is, or a dataset is there that was not made here.
            StorageError: the store fails.
        """
        if (there := self._read(_REQUEST, Request)) is not None:
            self._compare(there)
            return
        if self._storage.exists(INDEX):
            raise DatasetError(
                f"{self._storage.url} holds a dataset already, which data.prepare did not make; "
                "leave data.prepare out to train on it, or name another place"
            )
        self._storage.write(_REQUEST, self._request.seal())

    def _compare(self, there: Request) -> None:
        ours, theirs = (json.loads(r.sealed().to_json()) for r in (self._request, there))
        if found := difference(theirs, ours):
            changed = [line for line in found if not line.startswith("digest:")]
            raise DatasetError(
                f"{self._storage.url} was prepared with other options or from other data than "
                f"data.prepare now says ({'; '.join(changed)}); name another place, or remove what "
                "is there"
            )

    def part(self, number: int) -> Part | None:
        """A part that is there, all its shards with it."""
        found = self._read(_note(number), Part)
        if found is None or not all(self._holds(*_record(info)) for info in found.shards):
            return None
        return found

    def put(self, number: int, folder: Path, card: DatasetCard) -> Part:
        """Copies a part's shards to the place, and then says that they are there.

        Raises:
            StorageError: the store fails.
        """
        infos: list[dict[str, Any]] = json.loads((folder / INDEX).read_text())["shards"]
        names = {}
        for place, info in enumerate(infos):
            name = info["raw_data"]["basename"]
            names[name] = f"shard.{number:05d}.{place:05d}.mds"
            info["raw_data"]["basename"] = names[name]
        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as pool:
            copies = [pool.submit(self._copy, folder / old, new) for old, new in names.items()]
            written = {copy.result()[0]: copy.result()[1] for copy in copies}
        for info in infos:
            name, record = _record(info)
            if written[name] != record:
                raise StorageError(f"{folder}: shard {name} changed while it was copied")
        buckets = None
        if card.buckets is not None:
            buckets = {key: tuple(names[n] for n in shards) for key, shards in card.buckets.items()}
        part = Part(
            shards=tuple(infos),
            card=card.model_copy(update={"buckets": buckets}),
            skipped=tuple(reported(folder)),
        )
        self._storage.write(_note(number), part.seal())
        return part

    def finish(self, *, is_rewritten: bool) -> Prepared | None:
        """Makes the parts one dataset, where all are there; None where one is not yet.
        `is_rewritten`: each is of one that was there before, whose captions its card is about.

        Raises:
            DatasetError: parts do not fit together.
            StorageError: the store fails.
        """
        notes = [_note(number) for number in range(self._request.parts)]
        # They are large where captions have many words.
        if not all(self._storage.exists(note) for note in notes):
            return None
        read = [self._read(note, Part) for note in notes]
        parts = [part for part in read if part is not None]
        if len(parts) < len(read):
            return None
        card = joined([part.card for part in parts], self._storage.url, is_rewritten=is_rewritten)
        shards = [info for part in parts for info in part.shards]
        files = {
            INDEX: json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode(),
            CARD: (json.dumps(json.loads(card.to_json()), indent=2) + "\n").encode(),
        }
        if skipped := [entry for part in parts for entry in part.skipped]:
            files[REPORT] = (json.dumps(skipped, indent=2) + "\n").encode()
        prepared = Prepared(
            request=self._request.sealed(),
            samples=card.samples,
            files={name: self._storage.write(name, raw) for name, raw in files.items()},
        )
        self._storage.write(PREPARED, prepared.seal())
        return prepared

    def _read(self, name: str, kind: type[_Sealed]) -> _Sealed | None:
        """None where it is not there, or not as it was written."""
        try:
            return kind.unseal(self._storage.read(name))
        except (FileNotFoundError, ValueError):
            return None

    def _holds(self, name: str, record: FileRecord) -> bool:
        return self._storage.verify(name, record) is None

    def _copy(self, file: Path, name: str) -> tuple[str, FileRecord]:
        with file.open("rb") as source, self._storage.create(name) as target:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
        return name, target.record()


def _note(number: int) -> str:
    return f"prepared/part-{number:05d}.json"


def _record(info: Mapping[str, Any]) -> tuple[str, FileRecord]:
    raw = info["raw_data"]
    return raw["basename"], FileRecord(size=raw["bytes"], xxh64=raw["hashes"][HASH])


def joined(cards: Sequence[DatasetCard], where: str, *, is_rewritten: bool) -> DatasetCard:
    """Of parts of one dataset, in their order.

    Raises:
        DatasetError: they differ in what a dataset has one of.
    """
    _check(cards, where)
    buckets: dict[str, tuple[str, ...]] = {}
    for card in cards:
        for name, shards in (card.buckets or {}).items():
            buckets[name] = (*buckets.get(name, ()), *shards)
    samples = sum(card.samples for card in cards)
    whole = cards[0].model_copy(update={"samples": samples, "buckets": buckets or None})
    return whole if is_rewritten else whole.model_copy(update=_texts(cards))


def _check(cards: Sequence[DatasetCard], where: str) -> None:
    first = cards[0]
    for number, card in enumerate(cards):
        for name in ("source", "resolution", "licence", "latents", "embeddings"):
            if getattr(card, name) != getattr(first, name):
                raise DatasetError(
                    f"{where}: parts 0 and {number} were made with different {name}; a model that "
                    "they need was changed meanwhile: remove the folder `prepared` and begin anew"
                )
        if differing := set(card.caption_sample) ^ set(first.caption_sample):
            raise DatasetError(
                f"{where}: parts 0 and {number} do not both have {min(differing)}; every image of "
                "a dataset needs the same captions"
            )


def _texts(cards: Sequence[DatasetCard]) -> dict[str, Any]:
    """What the whole dataset's card says of its captions."""
    counts: Counter[str] = Counter()
    for card in cards:
        counts.update(dict(zip(card.vocabulary, card.word_counts, strict=True)))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = tuple(sorted(ranked[:MOST_WORDS]))
    return {
        "vocabulary": words,
        "word_counts": tuple(counts[word] for word in words),
        "caption_sample": {
            column: _evenly([text for card in cards for text in card.caption_sample[column]])
            for column in cards[0].caption_sample
        },
    }


def _evenly(texts: Sequence[str]) -> tuple[str, ...]:
    """Some of them."""
    every = max(1, len(texts) // SAMPLES)
    return tuple(texts[::every][:SAMPLES])
