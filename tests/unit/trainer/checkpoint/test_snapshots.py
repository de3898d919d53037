"""What a snapshot's manifest may say: it lies in a store that others write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from daybreak_trainer.checkpoint.layout import CommitPoint, FileRecord, SnapshotRef
from daybreak_trainer.checkpoint.snapshots import MANIFEST, Manifest, place_of, read_manifest
from daybreak_trainer.checkpoint.storage import Storage, StorageError

POINT = CommitPoint(attempt=1, step=7)


def sealed(files: dict[str, FileRecord]) -> bytes:
    fields = {"uid": "u", "samples": 35, "deviations": (0.05,), "recipe_hash": "r"}
    return Manifest.model_construct(point=POINT, files=files, **fields).seal()


@pytest.mark.parametrize(
    "name", ["../x", "text/../../x", "..", "/etc/passwd", "text//x", "./x", "", "a\\..\\x"]
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    """Before anything of it is read, though the file is there and its hash is right."""
    run = Storage(str(tmp_path))
    snapshot = SnapshotRef(point=POINT, samples=35, manifest=FileRecord(size=0, xxh64=""))
    place = place_of(run, snapshot)
    inside = {"text/config.json": place.write("text/config.json", b"{}")}
    place.write(MANIFEST, sealed(inside))
    assert read_manifest(run, snapshot).files == inside
    outside = place.child("..").write("x", b"secret")
    place.write(MANIFEST, sealed(inside | {name: outside}))
    with pytest.raises(StorageError, match=r"SNAPSHOT.json.*outside of its folder"):
        read_manifest(run, snapshot)
