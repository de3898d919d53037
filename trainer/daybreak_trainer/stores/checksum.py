"""Checksums that a store derives from what it holds, foretold from what is sent to it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Protocol, runtime_checkable

from crc32c import crc32c


class Checksum(Protocol):
    """Of a stream's bytes."""

    def update(self, data: memoryview) -> None: ...
    def value(self) -> str:
        """As the store writes it."""


@runtime_checkable
class ForetellingFileSystem(Protocol):
    """An fsspec file system whose store has such checksums."""

    def foretell(self, file: Any) -> Checksum:
        """For what will be written to `file`, which it has opened."""

    def stored(self, path: str) -> tuple[int, str | None]:
        """Size and checksum of an object; None where the store has none that can be foretold."""


class Etag:
    """The ETag of an object that is uploaded to S3 in parts of one size
    (S3FileSystem.fixed_upload_size): the MD5 of a single part, or the MD5 of the parts' MD5s with
    their number."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._size = 0
        self._parts: list[bytes] = []
        self._part = _md5()

    def update(self, data: memoryview) -> None:
        while len(data):
            room = self._part_bytes - self._size % self._part_bytes
            now, data = data[:room], data[room:]
            self._part.update(now)
            self._size += len(now)
            if self._size % self._part_bytes == 0:
                self._parts.append(self._part.digest())
                self._part = _md5()

    def value(self) -> str:
        if self._size < self._part_bytes:
            return str(self._part.hexdigest())
        parts = list(self._parts)
        if self._size % self._part_bytes:
            parts.append(self._part.digest())
        return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


class Crc32c:
    """The `crc32c` of an object's metadata in Cloud Storage: in Base64, big-endian."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: memoryview) -> None:
        self._sum = crc32c(data, self._sum)

    def value(self) -> str:
        return base64.b64encode(self._sum.to_bytes(4, "big")).decode()


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)
