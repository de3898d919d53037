"""DCP's metadata: which tensor is where. DCP keeps them as a pickle, and to read any pickle is to
run what it says; a checkpoint may be somebody else's. Here nothing is admitted but what describes
tensors."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo

from daybreak_trainer.checkpoint.storage import Storage, StorageError

METADATA = ".metadata"
"""DCP's name for it."""

# Not BytesStorageMetadata: for these DCP would load any pickle out of the data.
_ADMITTED = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        dcp.ChunkStorageMetadata,
        dcp.Metadata,
        dcp.MetadataIndex,
        dcp.StorageMeta,
        dcp.TensorProperties,
        dcp.TensorStorageMetadata,
        dcp._MEM_FORMAT_ENCODING,
        _StorageInfo,
        torch.Size,
        torch.serialization._get_layout,
    )
}


def read(storage: Storage) -> dcp.Metadata:
    """Those of the checkpoint in this folder.

    Raises:
        StorageError: they name what does not belong there, or are no metadata.
        FileNotFoundError: there are none.
    """
    where = f"{storage.url}/{METADATA}"
    raw = storage.read(METADATA)
    try:
        found = _Unpickler(io.BytesIO(raw)).load()
    except _RefusedError as error:
        raise StorageError(
            f"{where} names {error}, which no checkpoint of Daybreak's does; it was not loaded, "
            "for it could run a program: find out where the checkpoint comes from"
        ) from None
    except Exception as error:  # of pickle and of what it calls, for bytes that are no pickle
        raise StorageError(f"{where} is damaged: {error!r}") from error
    if not isinstance(found, dcp.Metadata):
        raise StorageError(f"{where} is damaged: it holds a {type(found).__name__}")
    return found


class _RefusedError(Exception):
    """A name that was not admitted."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (kind := _ADMITTED.get((module, name))) is not None:
            return kind
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise _RefusedError(f"{module}.{name}")
