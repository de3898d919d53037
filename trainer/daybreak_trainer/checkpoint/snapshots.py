"""Power-function averages that are kept in the course of a run, beside its checkpoints:

    <storage>/run-<uid>/averages/index.json                    which of them the run is made of
    <storage>/run-<uid>/averages/attempt-0002/step-00001200/   DCP's files, recipe, data, text tower
    <storage>/.../step-00001200/SNAPSHOT.json                  written last: it lists these files

A folder that the index does not name is none of the run's: its attempt died before it committed, or
training went back to before it. Snapshots are never removed: checkpoints come and go, and an
average may be put together months later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import TensorMeta

from daybreak_trainer.checkpoint import dcp, verify
from daybreak_trainer.checkpoint.layout import (
    CommitPoint,
    FileRecord,
    SealedMessage,
    SnapshotRef,
)
from daybreak_trainer.checkpoint.staging import local
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.checkpoint.together import Together

FOLDER = "averages"
INDEX = "index.json"
MANIFEST = "SNAPSHOT.json"
DTYPE = torch.bfloat16


class Manifest(SealedMessage):
    """`SNAPSHOT.json`."""

    uid: str
    point: CommitPoint
    samples: int = Field(description="That the weights were trained on.")
    deviations: tuple[float, ...] = Field(description="Widths of the averages, in their order.")
    recipe_hash: str
    files: dict[str, FileRecord]


class Index(SealedMessage):
    """`index.json`: oldest first."""

    uid: str
    snapshots: tuple[SnapshotRef, ...]


def copies(shadows: Mapping[float, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of both averages in host memory, in bf16, sharded as they are: `<number>.<parameter>`."""
    return {
        f"{number}.{name}": _copy(value)
        for number, shadow in enumerate(shadows.values())
        for name, value in shadow.items()
    }


def _copy(value: Tensor) -> Tensor:
    part = local(value).to(DTYPE).cpu()
    if not isinstance(value, DTensor):
        return part
    spec = value._spec
    assert spec.tensor_meta is not None  # a real tensor's
    meta = TensorMeta(spec.tensor_meta.shape, spec.tensor_meta.stride, DTYPE)
    spec = type(spec)(spec.mesh, spec.placements, meta)
    return DTensor(part, spec, requires_grad=False)  # type: ignore[no-untyped-call]


def write(
    run: Storage,
    together: Together,
    about: Manifest,
    tensors: Mapping[str, Tensor],
    documents: Mapping[str, bytes],
) -> SnapshotRef:
    """Writes one; a collective. It is there when its manifest is.

    Raises:
        StorageError: a rank could not write; what is there is no snapshot.
        RanksLostError: a rank is gone.
    """
    folder = f"{FOLDER}/{about.point.folder}"
    place = run.child(folder)
    together.run_on_first(f"begin {place.url}", lambda: place.remove(""))
    written = dcp.save(tensors, place, together)

    def described() -> dict[str, FileRecord]:
        if not together.rank.is_first:
            return written
        return written | {name: place.write(name, raw) for name, raw in documents.items()}

    parts = together.gathered(together.run(f"write {place.url}", described))
    files = {name: record for part in parts for name, record in part.items()}
    manifest = about.model_copy(update={"files": files})

    def finished() -> FileRecord:
        if problems := verify.missing_or_cut(place, files):
            raise StorageError(f"{problems[0]}; this is no snapshot")
        return place.write(MANIFEST, manifest.seal())

    record = together.run_on_first(f"finish {place.url}", finished)
    return SnapshotRef(point=about.point, samples=about.samples, manifest=record)


def write_index(run: Storage, uid: str, snapshots: tuple[SnapshotRef, ...]) -> None:
    run.write(f"{FOLDER}/{INDEX}", Index(uid=uid, snapshots=snapshots).seal())


def read_index(run: Storage) -> Index:
    """Raises StorageError where there is none that can be read."""
    where = f"{run.url}/{FOLDER}/{INDEX}"
    try:
        return Index.unseal(run.read(f"{FOLDER}/{INDEX}"))
    except FileNotFoundError:
        raise StorageError(
            f"{where}: there is no such file; the run kept no averages (recipe.ema.power)"
        ) from None
    except ValueError as error:
        raise StorageError(f"{where} is damaged: {error}") from None


def place_of(run: Storage, snapshot: SnapshotRef) -> Storage:
    return run.child(f"{FOLDER}/{snapshot.point.folder}")


def read_manifest(run: Storage, snapshot: SnapshotRef) -> Manifest:
    """Raises StorageError where a file of the snapshot is not what was written, for all are read,
    or the manifest names one that is not in its folder."""
    place = place_of(run, snapshot)
    try:
        manifest = Manifest.unseal(place.read(MANIFEST))
    except (FileNotFoundError, ValueError) as error:
        raise StorageError(f"{place.url}/{MANIFEST} cannot be read: {error}") from None
    for name in manifest.files:
        if not _is_inside(name):
            raise StorageError(f"{place.url}/{MANIFEST} names a file outside of its folder: {name}")
    if problems := verify.damages(place, manifest.files, sorted(manifest.files)):
        raise StorageError(f"{place.url}: {problems[0]}")
    return manifest


def _is_inside(name: str) -> bool:
    """Whether it is a file of the snapshot's own folder, whatever store that is in. A text tower's
    files lie in a folder in there, so a slash alone is no fault."""
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def read_average(place: Storage, number: int) -> dict[str, Tensor]:
    """One of a snapshot's averages by parameter, whole and in fp32, on the CPU; no other processes
    are needed."""
    prefix = f"{number}."
    found: Mapping[str, Any] = dcp.read(place, lambda name: name.startswith(prefix))
    return {name.removeprefix(prefix): value.float() for name, value in found.items()}
