"""A checkpoint's metadata are a pickle: nothing of it runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from daybreak_trainer.checkpoint import dcp, metadata
from daybreak_trainer.checkpoint.storage import Storage, StorageError

_ORIGIN = torch.Size([0])


class Program:
    def __init__(self, made: Path) -> None:
        self._made = made

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._made),)


def test_a_pickle_that_would_run_is_refused(tmp_path: Path) -> None:
    """What it names is said; DCP's bytes, which it would unpickle without a look, are refused too;
    a damaged file is called so."""
    storage, made = Storage(str(tmp_path)), tmp_path / "made"
    for content, name in (
        (Metadata({}, planner_data=Program(made)), "posix.mkdir"),
        (Metadata({"a": BytesStorageMetadata()}), "BytesStorageMetadata"),
    ):
        storage.write(metadata.METADATA, pickle.dumps(content))
        with pytest.raises(StorageError, match=f"names .*{name}, which no checkpoint"):
            dcp.read(storage, lambda _: True)
    assert not made.exists()
    for damaged in (b"", b"\x80\x04nonsense", pickle.dumps(torch.Size([2]))):
        storage.write(metadata.METADATA, damaged)
        with pytest.raises(StorageError, match="is damaged"):
            metadata.read(storage)


def test_tensors_of_every_type_are_described(tmp_path: Path) -> None:
    """As they were written."""
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    written = Metadata(
        {
            str(kind): TensorStorageMetadata(
                TensorProperties(kind), torch.Size([2]), [ChunkStorageMetadata(_ORIGIN, _ORIGIN)]
            )
            for kind in kinds
        },
        storage_data={MetadataIndex("a", [0]): _StorageInfo("__0_0.distcp", 0, 8)},
    )
    storage = Storage(str(tmp_path))
    storage.write(metadata.METADATA, pickle.dumps(written))
    assert metadata.read(storage) == written
