"""Reads samples out of one verified shard.

On disk a shard is `uint32 samples`, `uint32 offset[samples + 1]`, a JSON header, then each sample:
`uint32` sizes of its columns of variable size, and the columns. Arrays go by one `preadv` from the
page cache into the batch's own memory. Not through a mapping: a mapped file that is cut short, or
lies on a disk that fails, kills the process with SIGBUS, and here it must give an error.
"""

from __future__ import annotations

import os
import struct
import weakref
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from daybreak_trainer.data.errors import DataUnavailableError, ShardError, ShardMissingError
from daybreak_trainer.data.index import CAPTION, HASH, FileRecord, ShardInfo

_HEAD_BYTES = 1024
"""Read at once at a sample's beginning: mostly its sizes and texts."""
_CHUNK_BYTES = 1 << 20
UNDECODABLE = (
    OSError,
    SyntaxError,  # PIL's word for a broken PNG
    ValueError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)
_ADVICE = "restore it or prepare the dataset again"


def missing(where: str) -> ShardMissingError:
    return ShardMissingError(f"shard {where} is missing; {_ADVICE}")


def verify(path: Path | int, expected: FileRecord, where: str) -> None:
    """Compares a file (a path or a descriptor at its beginning) with what the index says of it.

    Raises:
        ShardError: another size or hash.
    """
    digest = xxhash.xxh64()
    with open(path, "rb", buffering=0, closefd=not isinstance(path, int)) as file:
        size = os.fstat(file.fileno()).st_size
        if size != expected.size:
            raise ShardError(
                f"shard {where} has {size} bytes instead of {expected.size}; {_ADVICE}"
            )
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected.xxh64:
        raise ShardError(
            f"shard {where} is damaged: {HASH} {digest.hexdigest()} instead of {expected.xxh64}; "
            f"{_ADVICE}"
        )


class ShardFile:
    """An open shard; its descriptor is closed when nobody refers to it any more, so a shard that is
    let go of stays readable for the thread that is using it."""

    def __init__(self, descriptor: int, info: ShardInfo, where: str) -> None:
        """Takes over the descriptor.

        Raises:
            ShardError: not what the index says.
        """
        self.descriptor, self.info, self._where = descriptor, info, where
        self._closer = weakref.finalize(self, os.close, descriptor)
        self._variable = struct.Struct(f"<{sum(size is None for size in info.columns.sizes)}I")
        self._offsets = array("I")
        try:
            (count,) = struct.unpack("<I", self._bytes(0, 4))
            self._offsets.frombytes(self._bytes(4, 4 * (info.samples + 1)))
        except OSError as error:
            raise self._unreadable("its header", error) from error
        if count != info.samples:
            raise self._unreadable("its header", f"{count} samples instead of {info.samples}")

    def read(
        self,
        number: int,
        rows: Mapping[str, Any],
        size: tuple[int, int],
        caption: str = CAPTION,
    ) -> str:
        """Decodes those of a sample's tensor columns that `rows` has; returns its caption, the one
        in the column `caption`.

        `rows` holds, for an array, its memory as `uint8` `(bytes,)`; for an image `(3, height,
        width)` `uint8`. `size` is the height and width that an image must have in the shard; where
        its memory is of an integer part of that, it is reduced by averaging.

        Raises:
            ShardError: the sample is not what it must be; the message names shard and sample.
            DataUnavailableError: the volume gives an error.
        """
        try:
            spans, head, begin = self._spans(number)
            for column in self.info.columns.tensors:
                if (row := rows.get(column.name)) is None:
                    continue
                offset, length = spans[column.name]
                if column.shape is None:
                    data = self._cut(head, begin, offset, length)
                    decode_image(column.encoding, data, row, size)
                elif os.preadv(self.descriptor, [row], offset) != length:
                    raise ValueError("the file ends in it")
            return self._cut(head, begin, *spans[caption]).decode()
        except UNDECODABLE as error:
            raise self._unreadable(f"sample {number}", error) from error

    def stored(self, number: int) -> dict[str, bytes]:
        """All columns of a sample as they are stored.

        Raises:
            As `read`.
        """
        try:
            spans, head, begin = self._spans(number)
            return {name: self._cut(head, begin, *span) for name, span in spans.items()}
        except UNDECODABLE as error:
            raise self._unreadable(f"sample {number}", error) from error

    def text(self, number: int, column: str) -> str:
        """One sample's string column.

        Raises:
            ShardError: as `read`.
        """
        try:
            return self.raw(number, column).decode()
        except UnicodeDecodeError as error:
            raise self._unreadable(f"sample {number}", error) from error

    def raw(self, number: int, column: str) -> bytes:
        """The bytes of one sample's column.

        Raises:
            ShardError, DataUnavailableError: as `read`.
        """
        try:
            spans, head, begin = self._spans(number)
            return self._cut(head, begin, *spans[column])
        except UNDECODABLE as error:
            raise self._unreadable(f"sample {number}", error) from error

    def _spans(self, number: int) -> tuple[dict[str, tuple[int, int]], bytes, int]:
        """Where each column of a sample lies, the sample's first bytes, and where they begin."""
        begin, end = self._offsets[number], self._offsets[number + 1]
        head = os.pread(self.descriptor, min(end - begin, _HEAD_BYTES), begin)
        variable = iter(self._variable.unpack_from(head))
        position = begin + self._variable.size
        spans = {}
        columns = self.info.columns
        for name, fixed in zip(columns.names, columns.sizes, strict=True):
            length = next(variable) if fixed is None else fixed
            spans[name] = (position, length)
            position += length
        if position != end:
            raise ValueError("its columns do not fill it")
        return spans, head, begin

    def _cut(self, head: bytes, begin: int, offset: int, length: int) -> bytes:
        start = offset - begin
        if start + length <= len(head):
            return head[start : start + length]
        return self._bytes(offset, length)

    def _bytes(self, offset: int, length: int) -> bytes:
        data = os.pread(self.descriptor, length, offset)
        if len(data) != length:
            raise OSError("the file is too short")
        return data

    def _unreadable(self, what: str, error: object) -> Exception:
        if isinstance(error, OSError) and error.errno is not None:  # the volume's, not the data's
            return DataUnavailableError(
                f"shard {self._where}: {what} cannot be read: {error}; the volume that holds it "
                "fails"
            )
        return ShardError(
            f"shard {self._where}: {what} cannot be read: {error}; the file changed while it was "
            f"in use, or was written so; {_ADVICE}"
        )


def decode_image(encoding: str, data: bytes, row: Any, size: tuple[int, int]) -> None:
    """Into `row`, uint8 `(3, height, width)`. PIL's decoders let other threads run, so they scale
    with threads.

    Raises:
        One of `UNDECODABLE`.
    """
    from streaming.base.format.mds.encodings import mds_decode

    image = mds_decode(encoding, data)
    if (image.height, image.width) != size:
        raise ValueError(
            f"the image is {image.height}x{image.width}, its bucket {size[0]}x{size[1]}"
        )
    if image.mode != "RGB":
        image = image.convert("RGB")
    if (reduction := image.height // row.shape[1]) > 1:
        image = image.reduce(reduction)
    np.copyto(row, np.asarray(image).transpose(2, 0, 1))
