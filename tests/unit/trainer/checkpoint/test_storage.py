"""A folder in any store: writes are whole or not at all, what is damaged is seen, and what a store
cannot do is said with its URL."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.checkpoint import lineage
from daybreak_trainer.checkpoint.layout import Commit, FileRecord
from daybreak_trainer.checkpoint.storage import HashingStream, Storage, StorageError


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def test_what_is_written_is_read(storage: Storage) -> None:
    """With its size and hash, whatever was there before; a child sees the same files."""
    storage.write("a/b", b"long, and old")
    record = storage.write("a/b", b"new")
    assert record == FileRecord(size=3, xxh64=xxhash.xxh64(b"new").hexdigest())
    assert storage.child("a").read("b") == b"new"
    assert storage.record("a/b") == record
    assert storage.size("a/b") == 3
    assert storage.files() == ["a/b"]
    assert storage.folders() == ["a"]
    assert storage.folders("a") == storage.folders("nothing") == []


def test_a_streamed_file_is_hashed_on_its_way(storage: Storage) -> None:
    """What the writer says it wrote is what the store has."""
    with storage.create("shard") as stream:
        stream.write(b"one")
        stream.write(memoryview(b"two"))
        assert stream.tell() == 6
    assert storage.record("shard") == stream.record()
    assert storage.read("shard") == b"onetwo"


@given(parts=st.lists(st.binary(max_size=40)))
def test_the_hash_does_not_depend_on_the_cuts(parts: list[bytes]) -> None:
    """However DCP cuts its writes."""
    with open(os.devnull, "wb") as sink:  # noqa: PTH123
        stream = HashingStream(sink)
        for part in parts:
            assert stream.write(part) == len(part)
    whole = b"".join(parts)
    assert stream.record() == FileRecord(size=len(whole), xxh64=xxhash.xxh64(whole).hexdigest())


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL between the bytes and the rename: a reader still finds the old content, whole."""
    storage = Storage(str(tmp_path))
    storage.write("COMMIT.json", b"old")
    if (child := os.fork()) == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        storage.write("COMMIT.json", b"new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "COMMIT.json.partial").read_bytes() == b"new"
    assert storage.read("COMMIT.json") == b"old"
    storage.write("COMMIT.json", b"newer")
    assert storage.read("COMMIT.json") == b"newer"
    assert storage.files() == ["COMMIT.json"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: None, None),
        (lambda s: s.remove("shard"), "file shard is missing"),
        (lambda s: (s.remove("shard"), s.write("shard/x", b"")), "file shard is missing"),
        (lambda s: s.write("shard", b""), "file shard has 0 bytes instead of 7"),
        (lambda s: s.write("shard", b"weight"), "file shard has 6 bytes instead of 7"),
        (lambda s: s.write("shard", b"weights!"), "file shard has 8 bytes instead of 7"),
        (lambda s: s.write("shard", b"weighTs"), "file shard is damaged"),
    ],
)
def test_every_kind_of_damage_is_seen(storage: Storage, spoil: object, sentence: str) -> None:
    """Missing, a folder in its place, empty, cut, longer, one bit: and a good file is good."""
    files = {"shard": storage.write("shard", b"weights")}
    commit = Commit(
        uid="u",
        attempt=1,
        step=1,
        samples=1,
        recipe_hash="r",
        dataset_fingerprint="d",
        training_seconds=1.0,
        world=1,
        time="2026-01-01T00:00:00Z",
        files=files,
    )
    spoil(storage)  # type: ignore[operator]
    found = lineage.damaged_files(storage, commit, ["shard"])
    assert (found is None) if sentence is None else (found or "").startswith(sentence)


def test_what_is_not_there_is_no_error_to_remove(storage: Storage) -> None:
    """And an error to read."""
    storage.remove("nothing")
    assert not storage.exists("nothing")
    for read in (storage.read, storage.size, storage.record):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read("nothing")


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.write("a", b""),
        lambda s: s.create("a").__enter__(),
        lambda s: s.child("a").write("b", b""),
    ],
)
def test_a_store_that_refuses_is_named(tmp_path: Path, call: object) -> None:
    """A file where the folder should be: the message has the URL, and no traceback is needed."""
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match=f"{tmp_path}/store/a"):
        call(Storage(f"{tmp_path}/store"))  # type: ignore[operator]


def test_a_url_that_names_no_store_is_said() -> None:
    """The message repeats it."""
    with pytest.raises(StorageError, match="nostore://bucket/x: not a storage URL"):
        Storage("nostore://bucket/x")


def test_listings_are_never_remembered() -> None:
    """Another rank's new file is seen at once: s3fs would answer from a listing it kept."""
    assert Storage("s3://bucket/x").fs.dircache.use_listings_cache is False
