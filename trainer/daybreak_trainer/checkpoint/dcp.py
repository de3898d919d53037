"""torch.distributed.checkpoint over a `Storage`: sharded state in, sharded state out, every byte
hashed on its way to the store."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.serialization import get_crc32_options, set_crc32_options

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.storage import Storage, StorageError


class _StorageFileSystem(FileSystemBase):
    """What DCP's writer and reader need of a file system, with a record of what was written."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.written: dict[str, FileRecord] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        name = os.fspath(path)
        if mode == "rb":
            with self._storage.open(name) as file:
                yield file
            return
        with self._storage.create(name) as stream:
            yield stream
        self.written[name] = stream.record()

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return posixpath.join(os.fspath(path), suffix)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        old, new = os.fspath(path), os.fspath(new_path)
        self._storage.move(old, new)
        self.written[new] = self.written.pop(old)

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """`Storage.create` makes what folders a store needs."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._storage.exists(os.fspath(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._storage.remove(os.fspath(path))


def save(
    tensors: Mapping[str, Tensor], storage: Storage, group: dist.ProcessGroup | None
) -> dict[str, FileRecord]:
    """Writes this rank's shards; rank 0 adds the metadata. Returns what *this rank* wrote.

    One writer thread: with more, DCP of torch 2.13 swallows a thread's I/O errors. No copying
    ahead: the tensors are on the host, and a writer's thread has no business on a GPU.

    Raises:
        StorageError: a rank could not write; every rank raises it.
    """
    files = _StorageFileSystem(storage)
    writer = FileSystemWriter("", thread_count=1, sync_files=False, per_thread_copy_ahead=0)
    writer.fs, writer.path = files, ""  # type: ignore[assignment]
    try:
        with _without_checksums():
            dcp_save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise StorageError(f"rank {rank} could not write its part: {cause}") from error
    return files.written


def check_fit(tensors: Mapping[str, Tensor], storage: Storage) -> None:
    """Raises ChangedError where the checkpoint has other tensors than these."""
    saved = _reader(storage).read_metadata().state_dict_metadata
    if differences := _differences(saved, tensors):
        shown = "; ".join(differences[:_SHOWN]) + ("; ..." if len(differences) > _SHOWN else "")
        raise ChangedError(
            f"checkpoint {storage.url} does not fit this run's model and optimizer "
            f"({len(differences)} tensors differ: {shown}); no setting makes it fit: give the run "
            "back the recipe it had, or start a new run"
        )


def load(tensors: Mapping[str, Tensor], storage: Storage, group: dist.ProcessGroup | None) -> None:
    """Fills the tensors in place, whatever number of ranks wrote them.

    Raises:
        StorageError: a rank could not read; every rank raises it.
    """
    try:
        dcp_load(dict(tensors), storage_reader=_reader(storage), process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise StorageError(f"rank {rank} could not read its part: {cause}") from error


def _reader(storage: Storage) -> FileSystemReader:
    reader = FileSystemReader("")
    reader.fs, reader.path = _StorageFileSystem(storage), ""  # type: ignore[assignment]
    return reader


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
