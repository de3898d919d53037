"""A folder in any store fsspec knows: a PVC's path, s3://, memory:// in tests.

What passes is tried again (`stores.patience`), what does not raises. The one thing that cannot be
given up is a call into the kernel: a path on a network file system that is mounted hard hangs as
long as its server does, and the watchdog ends the pod.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, BinaryIO, TypeVar, cast

import xxhash
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile
from tenacity import Retrying

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.streams import (
    CountedFile,
    HashingStream,
    Moved,
    RangeReader,
    SyncedFile,
)
from daybreak_trainer.stores.checksum import ForetellingFileSystem
from daybreak_trainer.stores.errors import (
    StorageError,
    StorageRefusedError,
    is_missing,
    is_upload_gone,
    said,
)
from daybreak_trainer.stores.filesystem import open_filesystem
from daybreak_trainer.stores.patience import Patience

__all__ = ["HashingStream", "Storage", "StorageError", "StorageRefusedError"]

_CHUNK_BYTES = 1 << 20
_T = TypeVar("_T")


class Storage:
    """Paths are relative to the folder and use `/`.

    Every method raises StorageError where the store fails, with the URL and what it said.
    """

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, patience: Patience | None = None
    ) -> None:
        """Raises StorageRefusedError where the URL names no store, or the options are wrong."""
        self.url = url.rstrip("/")
        self._patience = patience or Patience()
        self.fs, self.root = open_filesystem(url, options, self._patience)
        self.is_local = isinstance(self.fs, LocalFileSystem)
        self._foretells = isinstance(self.fs, ForetellingFileSystem)
        self.moved = Moved()
        """By this storage and all its children."""

    def path(self, relative: str) -> str:
        return posixpath.join(self.root, relative)

    def child(self, relative: str) -> Storage:
        """The folder `relative` as a storage of its own."""
        other = object.__new__(Storage)
        other.url, other.root = f"{self.url}/{relative}", self.path(relative)
        other.fs, other._patience = self.fs, self._patience
        other.is_local, other._foretells = self.is_local, self._foretells
        other.moved = self.moved
        return other

    @contextmanager
    def _speaking(self, operation: str, relative: str) -> Iterator[None]:
        """What a store raises has classes of its own, and often no URL."""
        where = f"{self.url}/{relative}" if relative else self.url
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            if is_missing(error) and operation != "write":
                raise FileNotFoundError(where) from None
            raise StorageError(f"{where}: cannot {operation}: {said(error)}") from error

    def _again(self, operation: str, relative: str, once: Callable[[], _T]) -> _T:
        """Calls until it succeeds, fails for good or patience ends; `once` must be repeatable."""
        policy = self._patience.policy(operation, lambda: f"{self.url}/{relative}")
        with self._speaking(operation, relative):
            answer = Retrying(**policy)(once)
        self.moved.add(1)
        return answer

    def folders(self, relative: str = "") -> list[str]:
        """Names of the folders right below, sorted; none where there is nothing."""
        path = self.path(relative)
        try:
            entries = self._again("list", relative, lambda: self.fs.ls(path, detail=True))
        except FileNotFoundError:
            return []
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in entries
            if entry["type"] == "directory"
        )

    def files(self, relative: str = "") -> list[str]:
        """Paths of all files below, sorted; none where there is nothing."""
        return list(self.sizes(relative))

    def sizes(self, relative: str = "") -> dict[str, int]:
        """Bytes of all files below by path, sorted: one listing, whatever their number. A file that
        is removed meanwhile may be missing."""
        path = self.path(relative)
        try:
            found = self._again("list", relative, lambda: self.fs.find(path, detail=True))
        except FileNotFoundError:
            return {}
        names = {posixpath.relpath(name, path): info for name, info in found.items()}
        return {name: int(names[name].get("size") or 0) for name in sorted(names)}

    def exists(self, relative: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            self._again("look up", relative, lambda: self.fs.info(self.path(relative)))
        except FileNotFoundError:
            return False
        return True

    def read(self, relative: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        path = self.path(relative)
        data: bytes = self._again("read", relative, lambda: self.fs.cat_file(path))
        return data

    def read_range(self, relative: str, start: int, end: int) -> bytes:
        """Bytes from `start` up to `end`, or as many as there are; raises FileNotFoundError where
        there is no such file."""
        path = self.path(relative)
        data: bytes = self._again(
            "read", relative, lambda: self.fs.cat_file(path, start=start, end=end)
        )
        return data

    @contextmanager
    def open(self, relative: str) -> Iterator[BinaryIO]:
        """A seekable stream to read from; each of its requests is repeated by itself.

        Raises FileNotFoundError where there is no such file.
        """
        path = self.path(relative)
        with self._speaking("read", relative):
            if self.is_local:
                with CountedFile.buffered(path, self.moved) as file:
                    yield file
                return

            def fetch(start: int, end: int) -> bytes:
                data = self.read_range(relative, start, end)
                self.moved.add(len(data))
                return data

            yield cast(BinaryIO, RangeReader.buffered(fetch, self.size(relative)))

    def write(self, relative: str, data: bytes) -> FileRecord:
        """Whole or not at all: object stores put atomically, a local file is renamed into place."""

        def once() -> FileRecord:
            with self._creating(relative) as stream:
                stream.write(data)
            return stream.record()

        return self._again("write", relative, once)

    @contextmanager
    def create(self, relative: str) -> Iterator[HashingStream]:
        """A writable binary stream that hashes what passes; its `record()` tells at the end.

        The file is there, complete, when the block ends, and not at all where the block raises.
        Raises StorageError also where the store has something else than what was written.
        """
        with self._speaking("write", relative), self._creating(relative) as stream:
            yield stream

    @contextmanager
    def _creating(self, relative: str) -> Iterator[HashingStream]:
        target = self.path(relative)
        if self.is_local:
            os.makedirs(posixpath.dirname(target), exist_ok=True)  # noqa: PTH103
            partial = f"{target}.partial"
            try:
                with closing(SyncedFile(partial)) as file:
                    stream = HashingStream(file, moved=self.moved)
                    yield stream
                    file.sync()
                os.replace(partial, target)  # noqa: PTH105
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)  # noqa: PTH108 (a full volume needs its room)
                raise
            return
        # No folders are made: an object store has none, and s3fs would make the bucket.
        raw = self.fs.open(target, "wb")
        checksum = self.fs.foretell(raw) if self._foretells else None
        stream = HashingStream(raw, checksum, self.moved)
        try:
            yield stream
        except BaseException:
            self._discard(raw, target)
            raise
        try:
            raw.close()
        except Exception as error:
            # Where the answer to the upload's completion was lost, asking again finds no upload.
            finished = is_upload_gone(error) and self._holds(relative, stream)
            self._discard(raw, target)
            if not finished:
                raise
        self._confirm(relative, stream)

    def _discard(self, raw: Any, target: str) -> None:
        """Gives up an upload, as far as the store can be reached; leaves nothing visible."""
        with suppress(Exception):
            raw.discard()
            if not isinstance(raw, AbstractBufferedFile):
                self.fs.rm_file(target)  # memory:// shows a file while it is written
        if isinstance(raw, AbstractBufferedFile):
            raw.closed = True  # else its destructor uploads what it still holds

    def _holds(self, relative: str, stream: HashingStream) -> bool:
        """Whether the store has this very content already."""
        try:
            return self._stored(relative) == (stream.record().size, stream.checksum())
        except (StorageError, FileNotFoundError):
            return False

    def _stored(self, relative: str) -> tuple[int, str | None]:
        """Size and, where the store derives one from the content, checksum."""
        path = self.path(relative)
        if self._foretells:
            found: tuple[int, str | None] = self._again(
                "look up", relative, lambda: self.fs.stored(path)
            )
            return found
        info = self._again("look up", relative, lambda: self.fs.info(path))
        return int(info["size"]), None

    def _confirm(self, relative: str, stream: HashingStream) -> None:
        """Compares what the store says it has with what was written."""
        written, expected = stream.record(), stream.checksum()
        size, checksum = self._stored(relative)
        wrong = f"{size} bytes of {written.size}" if size != written.size else None
        # Not every store's ETag is an MD5, even if it looks like one: the content decides.
        if wrong is None and checksum is not None and checksum != expected:
            found = self.record(relative)
            wrong = f"other bytes (xxh64 {found.xxh64} of {written.xxh64})"
            wrong = wrong if found != written else None
        if wrong is not None:
            raise StorageError(f"{self.url}/{relative}: was written, but the store has {wrong}")

    def size(self, relative: str) -> int:
        """Bytes; raises FileNotFoundError where there is no such file."""
        path = self.path(relative)
        info = self._again("look up", relative, lambda: self.fs.info(path))
        return int(info["size"])

    def verify(self, relative: str, expected: FileRecord) -> str | None:
        """What differs between a file as it was written and as the store has it now, by its size;
        None where nothing does. The content was compared when it was written (`create`), and is
        again by who reads it (`record`)."""
        try:
            size = self.size(relative)
        except FileNotFoundError:
            return f"{self.url}/{relative}: the store has no such file"
        if size != expected.size:
            return f"{self.url}/{relative}: the store has {size} bytes of {expected.size}"
        return None

    def record(self, relative: str) -> FileRecord:
        """Size and hash of a file as the store has it now; raises FileNotFoundError where there is
        no such file."""
        digest, size = xxhash.xxh64(), 0
        with self.open(relative) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return FileRecord(size=size, xxh64=digest.hexdigest())

    def remove(self, relative: str) -> None:
        """A file or a whole folder; fine where there is none."""
        path = self.path(relative)
        with suppress(FileNotFoundError):
            self._again("remove", relative, lambda: self.fs.rm(path, recursive=True))
