"""torch.distributed.checkpoint over a `Storage`: sharded state in, sharded state out, every byte
hashed on its way to the store."""

from __future__ import annotations

import io
import os
import posixpath
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torch.serialization import get_crc32_options, set_crc32_options

from daybreak_trainer.checkpoint import metadata as metadata_of
from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.metadata import METADATA
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.checkpoint.together import Together


class _StorageFileSystem(FileSystemBase):
    """What DCP's writer and reader need of a file system, with a record of what was written.

    DCP writes the metadata under another name and renames it, which an object store does by
    copying. Here they are kept in memory: `save` writes them once, under their own name.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self.url = storage, storage.url
        self.written: dict[str, FileRecord] = {}
        self.metadata: bytes | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        name = os.fspath(path)
        if mode == "rb":
            with self._storage.open(name) as file:
                yield file
        elif name == f"{METADATA}.tmp":
            with io.BytesIO() as memory:
                yield memory
                self.metadata = memory.getvalue()
        else:
            with self._storage.create(name) as stream:
                yield stream
            self.written[name] = stream.record()

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return posixpath.join(os.fspath(path), suffix)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Of the metadata, which have no file yet."""

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """`Storage.create` makes what folders a store needs."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Asked for old metadata only: a checkpoint's folder is empty when a save begins."""
        return False

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Never called, for nothing exists."""


class _Writer(FileSystemWriter):
    def __init__(self, storage: Storage, together: Together) -> None:
        """One writer thread: with more, DCP of torch 2.13 swallows a thread's I/O errors. No
        copying ahead: the tensors are on the host, and a writer's thread has no business on a
        GPU."""
        super().__init__("", thread_count=1, sync_files=False, per_thread_copy_ahead=0)
        self.files = _StorageFileSystem(storage)
        self.fs, self.path = self.files, ""  # type: ignore[assignment]
        self._together = together

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        write = super().write_data
        what = f"write this rank's part of {self.files.url}"
        return self._together.run(what, lambda: write(plan, planner))


class _LoneReader(FileSystemReader):
    """For one process, with metadata that were read before."""

    def __init__(self, storage: Storage, metadata: Metadata) -> None:
        super().__init__("")
        self.fs, self.path = _StorageFileSystem(storage), ""  # type: ignore[assignment]
        self._metadata = metadata

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return self._metadata


class _Reader(_LoneReader):
    def __init__(self, storage: Storage, together: Together, metadata: Metadata) -> None:
        super().__init__(storage, metadata)
        self._together, self._url = together, storage.url

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        read = super().read_data
        what = f"read this rank's part of {self._url}"
        return self._together.run(what, lambda: read(plan, planner))


def save(
    tensors: Mapping[str, Tensor], storage: Storage, together: Together
) -> dict[str, FileRecord]:
    """Writes this rank's shards; rank 0 adds the metadata. Returns what *this rank* wrote.

    Raises:
        StorageError: a rank could not write; every rank raises it.
    """
    writer = _Writer(storage, together)
    with _without_checksums(), _failing_plainly(together, "write"):
        dcp_save(dict(tensors), storage_writer=writer, process_group=together.group)
    files = writer.files
    metadata = files.metadata  # on rank 0
    written = together.run(
        f"write {storage.url}/{METADATA}",
        lambda: {} if metadata is None else {METADATA: storage.write(METADATA, metadata)},
    )
    return files.written | written


def load(tensors: Mapping[str, Tensor], storage: Storage, together: Together) -> None:
    """Fills the tensors in place, whatever number of ranks wrote them.

    Raises:
        ChangedError: the checkpoint has other tensors than these; none was filled.
        StorageError: a rank could not read; every rank raises it.
    """
    metadata = together.run(f"read {storage.url}/{METADATA}", lambda: metadata_of.read(storage))
    together.here(lambda: _check_fit(tensors, storage, metadata))
    reader = _Reader(storage, together, metadata)
    with _failing_plainly(together, "read"):
        dcp_load(dict(tensors), storage_reader=reader, process_group=together.group)


def read(storage: Storage, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, of those whose names are `wanted`, whatever number of ranks wrote
    them; for one process alone.

    Raises:
        StorageError: they cannot be read.
    """
    metadata = metadata_of.read(storage)
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and wanted(name)
    }
    reader = _LoneReader(storage, metadata)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process reads what several wrote is meant
            dcp_load(found, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise StorageError(f"{storage.url} cannot be read: {cause}") from error
    return found


def _check_fit(tensors: Mapping[str, Tensor], storage: Storage, metadata: Metadata) -> None:
    if differences := _differences(metadata.state_dict_metadata, tensors):
        shown = "; ".join(differences[:_SHOWN]) + ("; ..." if len(differences) > _SHOWN else "")
        raise ChangedError(
            f"checkpoint {storage.url} does not fit this run's model and optimizer "
            f"({len(differences)} tensors differ: {shown}); no setting makes it fit: give the run "
            "back the recipe it had, or start a new run"
        )


@contextmanager
def _failing_plainly(together: Together, operation: str) -> Iterator[None]:
    """DCP raises a sum of all ranks' errors that is no Exception."""
    try:
        with together.collectives():
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        if isinstance(cause, StorageError):  # `Together` named the rank
            raise type(cause)(str(cause)) from error
        raise StorageError(f"rank {rank} could not {operation} its part: {cause}") from error


@contextmanager
def _without_checksums() -> Iterator[None]:
    """`torch.save` adds a CRC32 to every tensor: a third of a save's CPU time, and each file's
    xxh64 is known better."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


_SHOWN = 5


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> list[str]:
    found = [f"{name} is new" for name in sorted(wanted.keys() - saved.keys())]
    found += [f"{name} is gone" for name in sorted(saved.keys() - wanted.keys())]
    for name in sorted(saved.keys() & wanted.keys()):
        old, new = list(saved[name].size), list(wanted[name].shape)
        if old != new:
            found.append(f"{name} is {new} instead of {old}")
    return found
