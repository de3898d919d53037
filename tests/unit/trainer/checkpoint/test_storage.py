"""A folder in any store: writes are whole or not at all, what is damaged is seen, and what a store
cannot do is said with its URL."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from bucket_server import BucketServer
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.storage import (
    HashingStream,
    Storage,
    StorageError,
    StorageRefusedError,
)


@pytest.fixture(params=["local", "memory", "s3", "gs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param in ("s3", "gs"):
        server: BucketServer = request.getfixturevalue(request.param)
        return Storage(f"{request.param}://{server.new_bucket()}/folder", server.options())
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
    assert storage.sizes() == {"a/b": 3}
    assert storage.sizes("nothing") == {}
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


def test_a_writer_that_fails_leaves_no_file(storage: Storage) -> None:
    """Whatever it had written: what is visible is complete; a full volume gets its room back."""

    def fail() -> None:
        with storage.create("shard") as stream:
            stream.write(b"half")
            raise RuntimeError("gave up")

    with pytest.raises(StorageError, match="gave up"):
        fail()
    assert not storage.exists("shard")
    assert storage.files() == []


def test_a_stream_that_is_read_anywhere(storage: Storage) -> None:
    """As DCP and pickle do: seek to a slice, read it, read to the end."""
    content = bytes(range(256)) * 5_000
    storage.write("shard", content)
    with storage.open("shard") as file:
        assert file.seek(-3, os.SEEK_END) == len(content) - 3
        assert file.read() == content[-3:]
        assert file.seek(700_000) == 700_000
        assert file.read(300_000) == content[700_000:1_000_000]
        assert file.read(1) == content[1_000_000:1_000_001]
        assert file.tell() == 1_000_001


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: None, None),
        (lambda s: s.remove("shard"), "shard: the store has no such file"),
        (lambda s: s.write("shard", b""), "shard: the store has 0 bytes of 7"),
        (lambda s: s.write("shard", b"weight"), "shard: the store has 6 bytes of 7"),
        (lambda s: s.write("shard", b"weights!"), "shard: the store has 8 bytes of 7"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_said(
    storage: Storage, spoil: Callable[[Storage], object], sentence: str | None
) -> None:
    """Missing, empty, cut, longer; and a good file is good."""
    record = storage.write("shard", b"weights")
    spoil(storage)
    found = storage.verify("shard", record)
    assert (found is None) if sentence is None else (found or "").endswith(sentence)


def test_many_files_at_once(storage: Storage) -> None:
    """Ranks of several pods write beside each other, and a folder goes as a whole."""
    names = [f"step/{number:04d}" for number in range(60)]
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda name: storage.write(name, name.encode()), names))
    storage.write("step-2/0", b"")
    assert storage.files("step") == [name.removeprefix("step/") for name in names]
    assert storage.folders() == ["step", "step-2"]
    assert storage.record(names[-1]) == records[-1]
    storage.remove("step")
    assert storage.files() == ["step-2/0"]


def test_what_is_not_there_is_no_error_to_remove(storage: Storage) -> None:
    """And an error to read."""
    storage.remove("nothing")
    assert not storage.exists("nothing")
    for read in (storage.read, storage.size, storage.record):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read("nothing")
    with pytest.raises(FileNotFoundError, match="nothing"), storage.open("nothing"):
        pass


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


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nostore://bucket/x", "nostore"),
        ("s3://", "it names no bucket"),
        ("gs://", "it names no bucket"),
    ],
)
def test_a_url_that_names_no_store_is_said(url: str, reason: str) -> None:
    """The message repeats it, and says what to do instead where there is something."""
    with pytest.raises(StorageRefusedError, match=f"{url}: not a storage URL.*{reason}"):
        Storage(url)


def test_listings_are_never_remembered() -> None:
    """Another rank's new file is seen at once: s3fs would answer from a listing it kept."""
    assert Storage("s3://bucket/x").fs.dircache.use_listings_cache is False
