"""What an MDS `index.json` says of its shards, checked once before anything is read.

The format is mosaicml-streaming's (`streaming/base/format/mds`); its files stay readable with the
library's own tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from daybreak_trainer.data.errors import DatasetError

HASH = "xxh64"
IMAGE, LATENT, CAPTION, ID = "image", "latent", "caption", "id"
_IMAGES = ("png", "jpeg", "pil")
_TEXTS = (CAPTION, ID)
_UNSAFE = "pkl"
"""Reading a pickle runs what the file says."""


@dataclass(frozen=True)
class TensorColumn:
    """A column whose values are stacked into one tensor a batch."""

    name: str
    encoding: str
    dtype: str
    shape: tuple[int, ...] | None
    """Of one value; None for an image, whose shape is its bucket's."""


@dataclass(frozen=True)
class Columns:
    """The columns of a shard in the order in which they are written."""

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]
    """Bytes of a value; None where each value says its own."""
    tensors: tuple[TensorColumn, ...]
    texts: tuple[str, ...]
    """Columns of strings."""
    raw: tuple[str, ...]
    """Columns of bytes, such as embeddings."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    name: str
    size: int
    xxh64: str


@dataclass(frozen=True, slots=True)
class ShardInfo:
    samples: int
    raw: FileRecord
    zipped: FileRecord | None
    """What lies in the store, where the shard is compressed."""
    compression: str | None
    columns: Columns

    @property
    def stored(self) -> FileRecord:
        return self.zipped or self.raw


def parse_index(raw: bytes, where: str) -> tuple[ShardInfo, ...]:
    """The shards that an `index.json` lists.

    Raises:
        DatasetError: not an MDS index, no samples, columns that cannot be trained on or could run
            code, a shard without a hash or outside the folder. The message begins with `where`.
    """
    try:
        shards = tuple(
            _shard(info, f"{where}: shard {number}")
            for number, info in enumerate(json.loads(raw)["shards"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{where}: not an MDS index: {error!r}") from None
    if not any(shard.samples for shard in shards):
        raise DatasetError(f"{where}: the dataset is empty")
    return shards


def _shard(info: Mapping[str, Any], where: str) -> ShardInfo:
    if info["format"] != "mds":
        raise DatasetError(f"{where} is {info['format']}, not MDS")
    zipped = info["zip_data"] if info["compression"] is not None else None
    return ShardInfo(
        samples=int(info["samples"]),
        raw=_file(info["raw_data"], where),
        zipped=_file(zipped, where) if zipped is not None else None,
        compression=info["compression"],
        columns=_columns(
            tuple(info["column_names"]),
            tuple(info["column_encodings"]),
            tuple(info["column_sizes"]),
            where,
        ),
    )


def _file(info: Mapping[str, Any], where: str) -> FileRecord:
    name = info["basename"]
    if "/" in name or name in ("", ".", ".."):
        raise DatasetError(f"{where} lies outside the folder: {name}")
    if HASH not in info["hashes"]:
        raise DatasetError(
            f"{where} has no {HASH} hash, so damage could not be seen; write it with "
            f"hashes=['{HASH}']"
        )
    return FileRecord(name, int(info["bytes"]), info["hashes"][HASH])


def _columns(
    names: tuple[str, ...],
    encodings: tuple[str, ...],
    sizes: tuple[int | None, ...],
    where: str,
) -> Columns:
    try:
        return _checked_columns(names, encodings, sizes)
    except DatasetError as error:
        raise DatasetError(f"{where}{error}") from None


@lru_cache(maxsize=64)
def _checked_columns(
    names: tuple[str, ...], encodings: tuple[str, ...], sizes: tuple[int | None, ...]
) -> Columns:
    """Raises DatasetError: a column is missing, has another type, or could run code."""
    columns = dict(zip(names, encodings, strict=True))
    for name, encoding in columns.items():
        if encoding == _UNSAFE:
            raise DatasetError(
                f": column {name} is pickled, and reading it could run any code; write the "
                "dataset without it"
            )
    listed = ", ".join(columns)
    for name in _TEXTS:
        if name not in columns:
            raise DatasetError(f" has no column {name}, only {listed}")
        if columns[name] != "str":
            raise DatasetError(f": column {name} is {columns[name]}; it must be str")
    if IMAGE not in columns and LATENT not in columns:
        raise DatasetError(f" has neither a column {IMAGE} nor {LATENT}, only {listed}")
    if (image := columns.get(IMAGE)) is not None and image not in _IMAGES:
        raise DatasetError(f": column {IMAGE} is {image}; it must be {' or '.join(_IMAGES)}")
    tensors = tuple(
        tensor for name, code in columns.items() if (tensor := _tensor(name, code)) is not None
    )
    if LATENT in columns and LATENT not in {tensor.name for tensor in tensors}:
        raise DatasetError(
            f": column {LATENT} is {columns[LATENT]}; it must be of one type and shape, as in "
            "ndarray:float16:32,8,8"
        )
    for tensor in tensors:
        if tensor.shape is not None and sizes[names.index(tensor.name)] != _bytes(tensor):
            raise DatasetError(f": column {tensor.name} has a size that is not its type's")
    texts = tuple(name for name, code in columns.items() if code == "str")
    raw = tuple(name for name, code in columns.items() if code == "bytes")
    return Columns(names, encodings, sizes, tensors, texts, raw)


def _tensor(name: str, encoding: str) -> TensorColumn | None:
    """None for a column that cannot be stacked: training does not read it."""
    if name == IMAGE:
        return TensorColumn(name, encoding, "uint8", None)
    kind, _, rest = encoding.partition(":")
    dtype, _, shape = rest.partition(":")
    if kind != "ndarray" or not dtype or not shape:
        return None
    return TensorColumn(name, encoding, dtype, tuple(int(side) for side in shape.split(",")))


def _bytes(tensor: TensorColumn) -> int:
    assert tensor.shape is not None  # asked of arrays only
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
