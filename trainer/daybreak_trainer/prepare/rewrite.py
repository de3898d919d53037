"""A dataset becomes another one with further columns, shard by shard.

What was stored stays as it is, byte for byte; samples that `skip.json` names are left out. The work
lies beside the result until that is whole, and goes on where it was stopped:

    .<name>.unfinished/request.json             what it is about
    .<name>.unfinished/dataset/shard.00017.mds  counts once its note is written, and only while it
                                                has the size and hash that the note says
    .<name>.unfinished/notes/shard.00017.mds    what the index is to say of it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.card import CARD, INDEX, DatasetCard, bucket_size
from daybreak_trainer.data.corpus import Corpus, Shard
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError, ShardError
from daybreak_trainer.data.index import HASH, FileRecord
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shard import ShardFile, verify
from daybreak_trainer.data.shards import Shards

REQUEST = "request.json"
_WHOLE, _NOTES, _CACHE = "dataset", "notes", "cache"
_CACHE_BYTES = 4 << 30
_MAX_SHARD_BYTES = (4 << 30) - (1 << 20)
"""What offsets of 32 bits can tell, less room for the shard's header."""
_AHEAD = 2
_UNFINISHED = "unfinished"

Row = dict[str, bytes]
"""A sample's values by column, as they lie in a shard."""
Progress = Callable[[int, int], None]


class SampleError(Exception):
    """A row that a column cannot be computed of."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row
        """Among those that were given, from 0."""


class NewColumn(Protocol):
    """A column that is computed from what is there."""

    name: str

    def identity(self) -> Mapping[str, Any]:
        """What decides its values: work that was begun with another one is not gone on with."""

    def encoding(self, size: tuple[int, int]) -> str:
        """Its MDS encoding in shards of this bucket, `(height, width)`."""

    def values(
        self, rows: Sequence[Row], encodings: Mapping[str, str], size: tuple[int, int]
    ) -> Iterator[bytes]:
        """One for each row, in order; `encodings` is how the rows' columns are stored.

        Raises:
            SampleError: a row that it cannot be computed of.
        """

    def record(self) -> dict[str, Any]:
        """Fields of the dataset's card that say what the column holds."""


@dataclass(frozen=True)
class Source:
    """A dataset that is read."""

    corpus: Corpus
    counters: DataCounters
    shards: Sequence[Shard]
    """Those of which a sample is kept, or a part of them."""

    @property
    def card(self) -> DatasetCard:
        return self.corpus.cards[0]

    @property
    def total(self) -> int:
        """Samples."""
        return sum(shard.kept for shard in self.shards)


def rewrite(
    source: str,
    out: Path,
    added: Sequence[NewColumn],
    dropped: frozenset[str] = frozenset(),
    progress: Progress = lambda done, total: None,
    *,
    options: Mapping[str, Any] | None = None,
    part: range | None = None,
) -> DatasetCard:
    """Writes the dataset at `source`, a folder or URL with its fsspec `options`, to `out`, with
    columns `added` and without those `dropped`; with `part`, only shards of these numbers, of those
    that have a sample to keep.

    Raises:
        DatasetError: the source is no dataset or has one of the columns already, a sample cannot be
            used, `out` is there already or cannot be written, or holds work on something else.
        ShardError, DataUnavailableError: as reading raises them.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists already; choose another folder or remove it first")
    work = out.parent / f".{out.name}.{_UNFINISHED}"
    try:
        for folder in (_WHOLE, _NOTES):
            (work / folder).mkdir(parents=True, exist_ok=True)
        opened = open_source(source, options or {}, part)
        return _rewrite(source, opened, out, work, added, dropped, progress)
    except OSError as error:
        raise DatasetError(f"{work}: cannot be written: {error}") from None


def _rewrite(
    source: str,
    opened: Source,
    out: Path,
    work: Path,
    added: Sequence[NewColumn],
    dropped: frozenset[str],
    progress: Progress,
) -> DatasetCard:
    for field in sorted({field for column in added for field in column.record()}):
        if getattr(opened.card, field) is not None:
            raise DatasetError(
                f"{source} has {field} already, of which its card says what they are; add to the "
                "dataset that it was made from"
            )
    _claim(work, opened.corpus, added, dropped)
    cache = NodeCache(work / _CACHE, _CACHE_BYTES, opened.counters)
    infos, done = [_kept(work, number) for number in range(len(opened.shards))], 0
    with closing(Shards(opened.corpus, cache, opened.counters, downloads=_AHEAD)) as files:
        todo = [number for number, info in enumerate(infos) if info is None]
        for number, shard in enumerate(opened.shards):
            if infos[number] is None:
                coming = [opened.shards[n].number for n in todo if number <= n <= number + _AHEAD]
                files.announce(dict.fromkeys(coming, 0))
                file = files.get(shard.number)
                infos[number] = _write(work, number, shard, file, added, dropped)
            done += shard.kept
            progress(done, opened.total)
    return _finish(opened, out, work, [info for info in infos if info is not None], added)


def open_source(source: str, options: Mapping[str, Any], part: range | None = None) -> Source:
    """Raises DatasetError, DataUnavailableError: as `open_corpus`."""
    counters = DataCounters()
    corpus = open_corpus([Stream(source, options)], counters)
    shards = [shard for shard in corpus.shards if shard.kept]
    if part is not None:
        shards = shards[part.start : part.stop]
    return Source(corpus, counters, shards)


def _claim(work: Path, corpus: Corpus, added: Sequence[NewColumn], dropped: frozenset[str]) -> None:
    """Says what the work is about, or that what lies there is about the same."""
    request = {
        "source": corpus.fingerprint,
        "added": {column.name: dict(column.identity()) for column in added},
        "dropped": sorted(dropped),
    }
    file = work / REQUEST
    text = json.dumps(request, indent=2, sort_keys=True)
    try:
        there = file.read_text()
    except FileNotFoundError:
        _replace(file, text)
        return
    if there != text:
        raise DatasetError(
            f"{work} holds unfinished work on other data, or with other options ({file.name} says "
            "which); remove it, or go on with the same"
        )


def _kept(work: Path, number: int) -> dict[str, Any] | None:
    """What the index is to say of a shard that was written before and is sound."""
    name = _name(number)
    try:
        info: dict[str, Any] = json.loads((work / _NOTES / name).read_text())
        raw = info["raw_data"]
        verify(work / _WHOLE / name, FileRecord(name, raw["bytes"], raw["hashes"][HASH]), name)
    except (OSError, ValueError, KeyError, ShardError):
        return None
    return info


def _write(
    work: Path,
    number: int,
    shard: Shard,
    file: ShardFile,
    added: Sequence[NewColumn],
    dropped: frozenset[str],
) -> dict[str, Any]:
    """One shard, and then its note."""
    encodings = dict(zip(file.info.columns.names, file.info.columns.encodings, strict=True))
    size = bucket_size(shard.bucket)
    for column in added:
        if column.name in encodings:
            raise DatasetError(f"shard {shard.where} has a column {column.name} already")
    numbers = shard.numbers(np.arange(shard.kept, dtype=np.int64)).tolist()
    rows = [file.stored(sample) for sample in numbers]
    try:
        computed = {c.name: list(c.values(rows, encodings, size)) for c in added}
    except SampleError as error:
        raise DatasetError(
            f"shard {shard.where}: sample {numbers[error.row]}: {error}; "
            "name it in skip.json to leave it out"
        ) from None
    columns = {name: code for name, code in encodings.items() if name not in dropped}
    columns |= {column.name: column.encoding(size) for column in added}
    samples = [
        row | {name: values[place] for name, values in computed.items()}
        for place, row in enumerate(rows)
    ]
    _check_size(shard, samples, columns)
    name = _name(number)
    folder = work / f"{name}.{_UNFINISHED}"
    shutil.rmtree(folder, ignore_errors=True)
    with _writer(folder, columns) as writer:
        for values in samples:
            writer.write({name: values[name] for name in columns})
    info: dict[str, Any] = json.loads((folder / INDEX).read_text())["shards"][0]
    (folder / info["raw_data"]["basename"]).replace(work / _WHOLE / name)
    info["raw_data"]["basename"] = name
    _replace(work / _NOTES / name, json.dumps(info))
    shutil.rmtree(folder)
    return info


def _check_size(shard: Shard, samples: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Raises DatasetError: the shard would be longer than its offsets, of 32 bits, can tell, and
    the writer would let them wrap."""
    # With each sample an offset and at most one size for each column.
    heads = 4 * (1 + len(columns)) * len(samples)
    total = heads + sum(len(values[name]) for values in samples for name in columns)
    if total > _MAX_SHARD_BYTES:
        raise DatasetError(
            f"shard {shard.where} would have {total:,} bytes with its new columns, and a shard can "
            f"have {_MAX_SHARD_BYTES:,}; prepare the dataset with a smaller --shard-size, and add "
            "the columns to that one"
        )


def _writer(folder: Path, columns: Mapping[str, str]) -> Any:
    """Takes values that are encoded already, and puts all of them into one shard."""
    from streaming import MDSWriter

    class Verbatim(MDSWriter):  # type: ignore[misc]
        def encode_sample(self, sample: dict[str, bytes]) -> bytes:
            sizes = [
                len(sample[name])
                for name, size in zip(self.column_names, self.column_sizes, strict=True)
                if size is None
            ]
            head = np.array(sizes, dtype="<u4").tobytes()
            return head + b"".join(sample[name] for name in self.column_names)

    return Verbatim(out=str(folder), columns=dict(columns), hashes=[HASH], size_limit=None)


def _finish(
    opened: Source,
    out: Path,
    work: Path,
    infos: Sequence[dict[str, Any]],
    added: Sequence[NewColumn],
) -> DatasetCard:
    """Gives the result its name; what is left of the work goes afterwards, for it tells a work that
    is stopped in between which shards are done."""
    buckets: dict[str, tuple[str, ...]] | None = None
    if opened.card.buckets is not None:
        buckets = {}
        for number, shard in enumerate(opened.shards):
            buckets[shard.bucket] = (*buckets.get(shard.bucket, ()), _name(number))
    record = {key: value for column in added for key, value in column.record().items()}
    card = opened.card.model_copy(update={"samples": opened.total, "buckets": buckets, **record})
    whole = work / _WHOLE
    _replace(whole / INDEX, json.dumps({"version": 2, "shards": list(infos)}, sort_keys=True))
    _replace(whole / CARD, json.dumps(json.loads(card.to_json()), indent=2) + "\n")
    if out.exists():
        out.rmdir()
    whole.rename(out)
    shutil.rmtree(work)
    return card


def _name(number: int) -> str:
    return f"shard.{number:05d}.mds"


def _replace(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(f"{file.name}.{_UNFINISHED}")
    partial.write_text(text)
    partial.replace(file)
