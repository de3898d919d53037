"""A folder in any store fsspec knows: a PVC's path, s3://, gs://, memory:// in tests."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from daybreak_trainer.checkpoint.layout import FileRecord

_CHUNK_BYTES = 1 << 20


class StorageError(Exception):
    """The storage refuses or cannot be reached; the message names the URL and what it said."""


class _Digest(Protocol):
    def update(self, data: Any) -> None: ...
    def hexdigest(self) -> str: ...


class Storage:
    """Paths are relative to the folder and use `/`.

    Every method raises StorageError where the store fails, with the URL and what it said.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        # Other ranks and attempts write here too: a listing that was kept may be wrong.
        fresh = {"use_listings_cache": False, **(options or {})}
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url, **fresh)
        except (ImportError, ValueError, TypeError) as error:
            raise StorageError(f"{url}: not a storage URL this image can use: {error}") from error
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, relative: str) -> str:
        return posixpath.join(self.root, relative)

    def child(self, relative: str) -> Storage:
        """The folder `relative` as a storage of its own."""
        other = object.__new__(Storage)
        other.url, other.root = f"{self.url}/{relative}", self.path(relative)
        other.fs, other.is_local = self.fs, self.is_local
        return other

    @contextmanager
    def _speaking(self, relative: str) -> Iterator[None]:
        """What a store raises has classes of its own, and often no URL."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"{self.url}/{relative}") from None
        except Exception as error:
            raise StorageError(f"{self.url}/{relative}: {error or repr(error)}") from error

    def folders(self, relative: str = "") -> list[str]:
        """Names of the folders right below, sorted; none where there is nothing."""
        try:
            with self._speaking(relative):
                entries = self.fs.ls(self.path(relative), detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in entries
            if entry["type"] == "directory"
        )

    def files(self, relative: str = "") -> list[str]:
        """Paths of all files below, sorted; none where there is nothing."""
        with self._speaking(relative):
            found = self.fs.find(self.path(relative))
        return sorted(posixpath.relpath(name, self.path(relative)) for name in found)

    def exists(self, relative: str) -> bool:
        with self._speaking(relative):
            return bool(self.fs.exists(self.path(relative)))

    def read(self, relative: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        with self._speaking(relative):
            data: bytes = self.fs.cat_file(self.path(relative))
        return data

    def write(self, relative: str, data: bytes) -> FileRecord:
        """Whole or not at all: object stores put atomically, a local file is renamed into place."""
        target = self.path(relative)
        with self._speaking(relative):
            self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
            if self.is_local:
                partial = f"{target}.partial"
                with open(partial, "wb") as file:  # noqa: PTH123 (an fsspec path, a string)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, target)  # noqa: PTH105
            else:
                self.fs.pipe_file(target, data)
        return FileRecord(size=len(data), xxh64=xxhash.xxh64(data).hexdigest())

    def size(self, relative: str) -> int:
        """Bytes; raises FileNotFoundError where there is no such file."""
        with self._speaking(relative):
            return int(self.fs.info(self.path(relative))["size"])

    def record(self, relative: str) -> FileRecord:
        """Size and hash of a file as the store has it now; raises FileNotFoundError where there is
        no such file."""
        digest, size = xxhash.xxh64(), 0
        with self._speaking(relative), self.fs.open(self.path(relative), "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return FileRecord(size=size, xxh64=digest.hexdigest())

    def remove(self, relative: str) -> None:
        """A file or a whole folder; fine where there is none."""
        with self._speaking(relative):
            if self.fs.exists(self.path(relative)):
                self.fs.rm(self.path(relative), recursive=True)

    @contextmanager
    def create(self, relative: str) -> Iterator[HashingStream]:
        """A writable binary stream that hashes what passes; its `record()` tells at the end."""
        target = self.path(relative)
        with self._speaking(relative):
            self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
            with self.fs.open(target, "wb") as raw:
                stream = HashingStream(raw)
                yield stream
                if self.is_local:
                    raw.flush()
                    os.fsync(raw.fileno())


class HashingStream:
    """A write-only binary stream that hashes its bytes on their way to the store."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._digest: _Digest = xxhash.xxh64()
        self._size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._size += len(view)
        self._raw.write(view)
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
