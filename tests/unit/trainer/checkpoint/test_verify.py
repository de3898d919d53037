"""Every kind of damage to a checkpoint's files is seen and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from daybreak_trainer.checkpoint import verify
from daybreak_trainer.checkpoint.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


@pytest.mark.parametrize(
    ("spoil", "sentence", "by_size"),
    [
        (lambda s: None, None, False),
        (lambda s: s.remove("shard"), "shard is missing", True),
        (lambda s: (s.remove("shard"), s.write("shard/x", b"")), "shard has ", True),
        (lambda s: s.write("shard", b""), "shard has 0 bytes instead of 7", True),
        (lambda s: s.write("shard", b"weight"), "shard has 6 bytes instead of 7", True),
        (lambda s: s.write("shard", b"weights!"), "shard has 8 bytes instead of 7", True),
        (lambda s: s.write("shard", b"weighTs"), "shard is damaged (xxh64", False),
    ],
)
def test_every_kind_of_damage_is_seen(
    storage: Storage, spoil: Callable[[Storage], object], sentence: str | None, by_size: bool
) -> None:
    """Missing, a folder in its place, empty, cut, longer, one bit: and good files are good. What
    the size tells is seen without reading."""
    files = {name: storage.write(name, b"weights") for name in ("a", "shard", "z")}
    spoil(storage)
    found = verify.damages(storage, files, sorted(files))
    if sentence is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"file {sentence}")
    if by_size:
        assert len(verify.missing_or_cut(storage, files)) == 1


def test_all_damaged_files_are_named(storage: Storage) -> None:
    """In the order asked for."""
    files = {str(number): storage.write(str(number), b"weights") for number in range(20)}
    for number in (3, 17):
        storage.write(str(number), b"w")
    found = verify.damages(storage, files, list(files))
    assert [sentence.split()[1] for sentence in found] == ["3", "17"]
