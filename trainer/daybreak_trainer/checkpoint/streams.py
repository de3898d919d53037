"""The streams between DCP and a store: they hash what is written, read by ranges, and count what
moves."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import IO, Any, Protocol

import xxhash

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.stores.checksum import Checksum

_SLICE_BYTES = 8 << 20
"""Most bytes handed to a store's stream at once: it copies them into its own buffer."""
_RANGE_BYTES = 32 << 20
"""Most bytes of one request to read: what is asked for again where its answer breaks off."""
_BUFFER_BYTES = 8 << 20
"""Fewest bytes of one: small reads that follow each other cost one request."""

_SYNC_BYTES = 64 << 20
"""Written between two syncs: what lies in the page cache has not moved yet, and one sync of it all
could take longer than a store may stand still."""


class Moved:
    """Counts what a store has done: bytes that it took or gave, and requests that it answered."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def add(self, count: int) -> None:
        with self._lock:
            self._count += count

    @property
    def count(self) -> int:
        return self._count


class _Digest(Protocol):
    def update(self, data: Any) -> None: ...
    def hexdigest(self) -> str: ...


class HashingStream:
    """A write-only binary stream that hashes its bytes on their way to the store."""

    def __init__(
        self,
        raw: IO[bytes] | SyncedFile,
        checksum: Checksum | None = None,
        moved: Moved | None = None,
    ) -> None:
        """`checksum`: what the store will derive from the content, where it does."""
        self._raw, self._moved, self._checksum = raw, moved or Moved(), checksum
        self._digest: _Digest = xxhash.xxh64()
        self._size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _SLICE_BYTES):
            piece = view[start : start + _SLICE_BYTES]
            self._digest.update(piece)
            if self._checksum is not None:
                self._checksum.update(piece)
            self._raw.write(piece)
            self._moved.add(len(piece))
        self._size += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._raw.flush()

    def close(self) -> None:
        """Only flushes: `Storage.create` syncs and closes the stream below."""
        self._raw.flush()

    def record(self) -> FileRecord:
        return FileRecord(size=self._size, xxh64=self._digest.hexdigest())

    def checksum(self) -> str | None:
        """What the store has to derive from what was written; None where it derives nothing."""
        return None if self._checksum is None else self._checksum.value()


class SyncedFile:
    """A new local file whose bytes are on the disk soon after they were written."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb")  # noqa: PTH123, SIM115 (an fsspec path; `close` closes it)
        self._unsynced = 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self.sync()
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        self._file.close()


class CountedFile(io.FileIO):
    """A local file to read from."""

    def __init__(self, path: str, moved: Moved) -> None:
        super().__init__(path, "rb")
        self._moved = moved

    @classmethod
    def buffered(cls, path: str, moved: Moved) -> io.BufferedReader:
        return io.BufferedReader(cls(path, moved), _BUFFER_BYTES)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(memoryview(buffer).cast("B")[:_RANGE_BYTES]) or 0
        self._moved.add(count)
        return count


class RangeReader(io.RawIOBase):
    """Reads a file of known size by ranges, each a request of its own."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._position = fetch, size, 0

    @classmethod
    def buffered(cls, fetch: Callable[[int, int], bytes], size: int) -> io.BufferedReader:
        return io.BufferedReader(cls(fetch, size), _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readall(self) -> bytes:
        """The rest; the inherited one reads 8 KiB at a time."""
        rest = bytearray(max(0, self._size - self._position))
        view, filled = memoryview(rest), 0
        while count := self.readinto(view[filled:]):
            filled += count
        return bytes(view[:filled])

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._position + min(len(view), _RANGE_BYTES), self._size)
        if end <= self._position:
            return 0
        data = self._fetch(self._position, end)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
