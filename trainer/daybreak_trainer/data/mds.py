"""Reads MDS shards, and trusts none that was not checked.

Format and decoding are mosaicml-streaming's; download, verification and errors are ours: the
library's own reader ends an epoch without a word on a bad shard, or hangs. Here every shard's size
and hash are compared with `index.json` before its first sample is used, local files included, and
a shard that differs is named in the error.
"""

from __future__ import annotations

import json
import os
import posixpath
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import xxhash
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from daybreak_trainer.data.card import CARD, INDEX, DatasetCard
from daybreak_trainer.data.errors import DatasetError, ShardError

_HASH = "xxh64"
_CHUNK_BYTES = 1 << 20
_COLUMNS = {"image": ("png", "jpeg", "pil"), "caption": ("str",), "id": ("str",)}
"""The columns that training reads, and the encodings they may have."""
_UNSAFE = "pkl"
"""The library decodes every column of a sample, and unpickling runs what the file says."""


@dataclass(frozen=True)
class Sample:
    image: npt.NDArray[np.uint8]
    """`(3, height, width)`."""
    caption: str
    id: str


@dataclass
class _Shard:
    number: int
    first: int
    """Index of its first sample in the dataset."""
    info: dict[str, Any]
    reader: Any = None
    """Set once its file is here and checked."""

    @property
    def name(self) -> str:
        return str(self.info["raw_data"]["basename"])


class Dataset:
    """Random access to the samples of one MDS folder; safe to use from several threads."""

    def __init__(self, url: str, options: Mapping[str, Any], cache_dir: Path) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        raw = self._read(INDEX)
        self.fingerprint = xxhash.xxh3_128(raw).hexdigest()
        self._shards = _shards(raw, f"{self.url}/{INDEX}")
        self._starts = np.array([shard.first for shard in self._shards], dtype=np.int64)
        self._length = sum(int(shard.info["samples"]) for shard in self._shards)
        self.card = self._card()
        self._folder = Path(self._root) if self._is_local else cache_dir / self.fingerprint
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    @property
    def resolution(self) -> int:
        return self.card.resolution

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Words of all captions, sorted."""
        return self.card.vocabulary

    def get(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: there is no such sample.
            ShardError: its shard is missing, truncated or damaged.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"{self.url}: sample {index} of {self._length}")
        shard = self._shards[int(np.searchsorted(self._starts, index, side="right")) - 1]
        reader = self._reader(shard)
        try:
            row = reader.get_item(index - shard.first)
            image = np.asarray(row["image"].convert("RGB"), dtype=np.uint8)
        except (OSError, SyntaxError, ValueError, IndexError) as error:
            raise ShardError(
                f"shard {self.url}/{shard.name}: sample {index} cannot be read: {error}; the file "
                "changed while it was in use, or was written so; restore it or prepare the "
                "dataset again"
            ) from error
        return Sample(np.ascontiguousarray(image.transpose(2, 0, 1)), row["caption"], row["id"])

    def _reader(self, shard: _Shard) -> Any:
        if shard.reader is None:
            with self._lock:
                if shard.reader is None:
                    self._fetch(shard)
                    from streaming.base.format import reader_from_json

                    shard.reader = reader_from_json(str(self._folder), None, shard.info)
        return shard.reader

    def _fetch(self, shard: _Shard) -> None:
        """Brings a shard here, checked; a cached one is checked again, and replaced if damaged."""
        local = self._folder / shard.name
        remote = f"{self.url}/{shard.name}"
        if self._is_local:
            if not local.exists():
                raise _missing(remote)
            _verify(local, shard, remote)
            return
        if local.exists():
            try:
                _verify(local, shard, remote)
            except ShardError:
                local.unlink(missing_ok=True)  # a bad copy says nothing about the original
            else:
                return
        self._download(shard, local, remote)

    def _download(self, shard: _Shard, local: Path, remote: str) -> None:
        """Under its final name only once checked; ranks of one pod share the folder."""
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f"{local.name}.{os.getpid()}.partial")
        try:
            self._fs.get_file(posixpath.join(self._root, shard.name), str(partial))
            _verify(partial, shard, remote)
            partial.replace(local)
        except FileNotFoundError:
            raise _missing(remote) from None
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, name: str) -> bytes:
        try:
            data: bytes = self._fs.cat_file(posixpath.join(self._root, name))
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetError(
                f"{self.url}: there is no {name}; is this the folder that `daybreak prepare` wrote?"
            ) from None
        return data

    def _card(self) -> DatasetCard:
        try:
            card = DatasetCard.model_validate_json(self._read(CARD))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DatasetError(f"{self.url}/{CARD}: {where}: {first['msg']}") from None
        if card.samples != self._length:
            raise DatasetError(
                f"{self.url}: {CARD} says {card.samples} samples, {INDEX} lists {self._length}; "
                "they are not of one dataset, prepare it again"
            )
        return card


def open_dataset(url: str, storage_options: Mapping[str, Any], cache_dir: Path) -> Dataset:
    """The dataset at any fsspec URL or local path; shards are read when they are needed.

    Raises:
        DatasetError: no dataset there, or not one that can be trained on.
    """
    try:
        return Dataset(url, storage_options, cache_dir)
    except (ImportError, ValueError, PermissionError) as error:
        raise DatasetError(f"{url}: cannot be opened: {error}") from error


def _shards(raw: bytes, where: str) -> list[_Shard]:
    """The shards of an index, with what training needs of each.

    Raises:
        DatasetError: not an MDS index, no shards, compressed shards, missing columns or hashes.
    """
    try:
        infos = json.loads(raw)["shards"]
        shards, first = [], 0
        for number, info in enumerate(infos):
            _check_columns(info, f"{where}: shard {number}")
            basename = info["raw_data"]["basename"]
            if "/" in basename or basename in ("", ".", ".."):
                raise DatasetError(f"{where}: shard {number} lies outside the folder: {basename}")
            if info["format"] != "mds" or info["compression"] is not None:
                raise DatasetError(f"{where}: shard {number} is not uncompressed MDS")
            if _HASH not in info["raw_data"]["hashes"]:
                raise DatasetError(
                    f"{where}: shard {number} has no {_HASH} hash, so damage could not be seen; "
                    f"write it with hashes=['{_HASH}']"
                )
            shards.append(_Shard(number, first, info))
            first += int(info["samples"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{where}: not an MDS index: {error!r}") from None
    if first == 0:
        raise DatasetError(f"{where}: the dataset is empty")
    return shards


def _check_columns(info: Mapping[str, Any], where: str) -> None:
    """Raises DatasetError: a column is missing, has another type, or could run code."""
    columns = dict(zip(info["column_names"], info["column_encodings"], strict=True))
    for name, encodings in _COLUMNS.items():
        if name not in columns:
            raise DatasetError(f"{where} has no column {name}, only {', '.join(columns)}")
        if columns[name] not in encodings:
            raise DatasetError(
                f"{where}: column {name} is {columns[name]}; it must be {' or '.join(encodings)}"
            )
    for name, encoding in columns.items():
        if encoding == _UNSAFE:
            raise DatasetError(
                f"{where}: column {name} is pickled, and reading it could run any code; write the "
                "dataset without it"
            )


def _missing(where: str) -> ShardError:
    return ShardError(f"shard {where} is missing; restore it or prepare the dataset again")


def _verify(file: Path, shard: _Shard, where: str) -> None:
    expected = shard.info["raw_data"]
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise ShardError(
            f"shard {where} has {size} bytes instead of {expected['bytes']}; restore it or prepare "
            "the dataset again"
        )
    digest = xxhash.xxh64()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected["hashes"][_HASH]:
        raise ShardError(
            f"shard {where} is damaged: {_HASH} {digest.hexdigest()} instead of "
            f"{expected['hashes'][_HASH]}; restore it or prepare the dataset again"
        )
