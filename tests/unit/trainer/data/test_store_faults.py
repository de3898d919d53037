"""What a store does wrong is put right, or named: never a hang, never a wrong or missing sample."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
from faulty_data_store import FaultyFolder, every_nth_fails, hangs, throttled
from mds_folders import name_of, write_latents

from daybreak_trainer.data.errors import DatasetError, DataUnavailableError, ShardError
from daybreak_trainer.data.retry import RetryPolicy

MakeReader = Callable[..., Any]
URL = "faulty://store"
SAMPLES = 60


@pytest.fixture
def store(faulty: FaultyFolder) -> FaultyFolder:
    write_latents(faulty.root, [10] * 6)
    return faulty


def numbers(reader: Any, size: int = 12, steps: int = 5) -> list[int]:
    """Of every sample of an epoch, in order, each with its own content."""
    found: list[int] = []
    for batch in reader.batches([size] * steps):
        assert list(batch.captions) == [f"number {index}" for index in batch.indices]
        assert batch.tensors["latent"][:, 0, 0, 0].tolist() == batch.indices.tolist()
        found += batch.indices.tolist()
    return found


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def no_bucket() -> Exception:
    """As s3fs says it."""
    answer = {"Error": {"Code": "NoSuchBucket"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
    cause = Exception("The specified bucket does not exist")
    cause.response = answer  # type: ignore[attr-defined]
    error = FileNotFoundError("The specified bucket does not exist")
    error.__cause__ = cause
    return error


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:-1], "bytes instead of"),
    (lambda data: data + b"\0", "bytes instead of"),
    (flip, "is damaged"),
]


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_shard_is_named(
    reader: MakeReader,
    store: FaultyFolder,
    local: bool,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    """Truncated, grown, or one bit flipped, on a mounted volume or in a store: no sample of it is
    handed out, the error names it and says what to do, and nothing of it stays in the cache."""
    path = store.root / name_of(2)
    path.write_bytes(damage(path.read_bytes()))
    one = reader(store.root if local else URL)
    with pytest.raises(ShardError, match=rf"{name_of(2)} .*{message}.*prepare the dataset again"):
        numbers(one)
    assert not list(one.cache.rglob(f"{name_of(2)}*"))
    assert one.counts.shard_failures == 1


@pytest.mark.parametrize("local", [True, False])
def test_a_missing_shard_is_named(reader: MakeReader, store: FaultyFolder, local: bool) -> None:
    """At once: what is not there does not come back."""
    (store.root / name_of(4)).unlink()
    with pytest.raises(ShardError, match=rf"{name_of(4)} is missing"):
        numbers(reader(store.root if local else URL))
    assert local or store.requests[name_of(4)] == 1


def test_a_shard_damaged_on_its_way_is_fetched_again(
    reader: MakeReader, store: FaultyFolder
) -> None:
    """A bit that flips in transit is no reason to end a run."""
    store.cut[name_of(3)] = 100

    def heal(name: str, before: int) -> None:
        if name == name_of(3) and before == 1:
            store.cut.clear()

    store.fault = heal
    assert sorted(numbers(reader(URL))) == list(range(SAMPLES))
    assert store.requests[name_of(3)] == 2


@pytest.mark.parametrize("n", [2, 3])
def test_a_store_that_fails_every_nth_request(
    reader: MakeReader, store: FaultyFolder, n: int
) -> None:
    """The epoch is whole and in the same order; the retries are counted."""
    expected = numbers(reader(store.root))
    store.fault = every_nth_fails(n)
    one = reader(URL)
    assert numbers(one) == expected
    assert one.counts.retries > 0
    assert one.counts.shard_failures == 0


def test_a_store_that_throttles(reader: MakeReader, store: FaultyFolder) -> None:
    """Each shard is refused three times; the attempts spread out and succeed."""
    store.fault = throttled(3)
    one = reader(URL)
    assert sorted(numbers(one)) == list(range(SAMPLES))
    assert one.counts.retries == 3 * 6
    assert {store.requests[name_of(n)] for n in range(6)} == {4}


def test_a_store_that_never_answers_once(reader: MakeReader, store: FaultyFolder) -> None:
    """One request hangs for ever: it is left behind, and another gets the shard. When the first
    comes back after all, it spoils nothing."""
    released = threading.Event()
    store.fault = hangs(name_of(1), 1, released)
    one = reader(URL, policy=RetryPolicy(60, 2.0, 0.01, 0.05))
    assert sorted(numbers(one)) == list(range(SAMPLES))
    assert store.requests[name_of(1)] == 2
    released.set()
    deadline = time.monotonic() + 60
    while any(t.name == "store" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [p.name for p in one.cache.rglob("*.partial-*")] == []
    assert sorted(numbers(reader(URL))) == list(range(SAMPLES))


def test_a_store_that_is_down_for_good(reader: MakeReader, store: FaultyFolder) -> None:
    """Within the time it is given, with the shard's name and the store's own words; it is not said
    to be the data's fault, for another attempt may find the store up again."""

    def down(name: str, _before: int) -> None:
        if name == name_of(0):
            raise OSError(errno.EIO, "service unavailable")

    store.fault = down
    one = reader(URL, policy=RetryPolicy(2.0, 60, 0.01, 0.05))
    started = time.monotonic()
    with pytest.raises(
        DataUnavailableError, match=rf"{name_of(0)}.*service unavailable.*did not recover"
    ):
        numbers(one)
    assert time.monotonic() - started < 60
    assert one.counts.retries >= 3


def test_shards_are_fetched_side_by_side(reader: MakeReader, store: FaultyFolder) -> None:
    """And ahead of need: a slow store is asked for several shards at once, within the limit."""
    gate, met = threading.Barrier(4), threading.Event()

    def meet(name: str, _before: int) -> None:
        if name.endswith(".mds") and not gate.broken:
            with contextlib.suppress(threading.BrokenBarrierError):
                gate.wait(timeout=50)
                met.set()
            gate.abort()  # four were here at once; the others need not wait

    store.fault = meet
    assert sorted(numbers(reader(URL, policy=RetryPolicy()))) == list(range(SAMPLES))
    assert met.is_set()


def test_a_volume_that_fails_is_not_bad_data(
    reader: MakeReader, store: FaultyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale mount says nothing about the shard: another attempt may go well."""

    def stale(*_arguments: object) -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    one = reader(store.root)
    _, shards = one.shards()
    file = shards.get(0)
    monkeypatch.setattr(os, "pread", stale)
    with pytest.raises(DataUnavailableError, match=rf"{name_of(0)}: sample 0.*Stale.*volume"):
        file.text(0, "caption")
    shards.close()


def test_a_wrong_sample_count_ends(reader: MakeReader, store: FaultyFolder) -> None:
    """An index that is not of its shards, whose hashes fit all the same: named after the downloads
    that a damaged shard gets, and nothing of it stays in the cache."""
    index = json.loads((store.root / "index.json").read_text())
    index["shards"][3]["samples"] += 1
    (store.root / "index.json").write_text(json.dumps(index))
    card = json.loads((store.root / "dataset.json").read_text())
    (store.root / "dataset.json").write_text(json.dumps(card | {"samples": SAMPLES + 1}))
    one = reader(URL)
    with pytest.raises(ShardError, match=rf"{name_of(3)}: its header.*10 samples instead of 11"):
        numbers(one, size=61, steps=1)
    assert store.requests[name_of(3)] == 2
    assert not list(one.cache.rglob(f"{name_of(3)}*"))
    with pytest.raises(ShardError, match=rf"{name_of(3)}: its header.*10 samples instead of 11"):
        numbers(reader(store.root), size=61, steps=1)


class Volume:
    """Makes the system's calls for files whose name matches fail, as a volume's server does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self._name, self.times = name, times
        self._files: set[int] = set()
        self._open = os.open
        self._calls: dict[str, Callable[..., Any]] = {"pread": os.pread, "preadv": os.preadv}
        monkeypatch.setattr(os, "open", self.open)
        for call in self._calls:
            monkeypatch.setattr(os, call, partial(self.read, call))

    def fail(self) -> None:
        if self.times:
            self.times -= 1
            raise OSError(errno.ESTALE, "Stale file handle")

    def open(self, path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(self._name):
            self.fail()
        descriptor = self._open(path, *arguments, **options)
        if str(path).endswith(self._name):
            self._files.add(descriptor)
        return descriptor

    def read(self, call: str, descriptor: int, *arguments: Any) -> Any:
        if descriptor in self._files:
            self.fail()
        return self._calls[call](descriptor, *arguments)


def test_a_volume_that_stumbles_while_a_shard_is_opened(
    reader: MakeReader, store: FaultyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that is restarted: it is asked again, as a bucket would be."""
    volume = Volume(monkeypatch, name_of(2), times=3)
    one = reader(store.root)
    assert sorted(numbers(one)) == list(range(SAMPLES))
    assert volume.times == 0
    assert one.counts.retries == 3


@pytest.mark.parametrize("local", [True, False])
def test_a_volume_that_stumbles_while_a_shard_is_read(
    reader: MakeReader, store: FaultyFolder, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    """The shard is opened anew, from its volume or the cache's, until that works; every sample
    comes."""
    one = reader(store.root if local else URL)
    loader = one.loader([1] * SAMPLES, threads=1, depth=1)
    batches = iter(loader)
    found = [int(next(batches).indices[0]) for _ in range(20)]
    (held,) = {file.descriptor for file in loader._shards._open.values() if "00002" in file._where}
    volume = Volume(monkeypatch, name_of(2), times=3)
    volume._files.add(held)
    found += [int(batch.indices[0]) for batch in batches]
    assert sorted(found) == list(range(SAMPLES))
    assert volume.times == 0


def test_a_volume_that_fails_for_good(
    reader: MakeReader, store: FaultyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time it is given, and not as bad data."""
    Volume(monkeypatch, name_of(2), times=10**9)
    one = reader(store.root, policy=RetryPolicy(2.0, 60, 0.01, 0.05))
    started = time.monotonic()
    with pytest.raises(DataUnavailableError, match=rf"{name_of(2)}: Stale file handle"):
        numbers(one)
    assert time.monotonic() - started < 60
    assert one.counts.retries >= 3


def test_a_shard_may_be_refused(reader: MakeReader, store: FaultyFolder) -> None:
    """No permission is an answer: no second request, and the credentials are named as the cause."""

    def refused(name: str, _before: int) -> None:
        if name == name_of(0):
            raise PermissionError("Access Denied")

    store.fault = refused
    with pytest.raises(ShardError, match=rf"{name_of(0)} may not be read.*credentials"):
        numbers(reader(URL))
    assert store.requests[name_of(0)] == 1


def test_a_shard_that_shrinks_while_in_use_is_named(
    reader: MakeReader, store: FaultyFolder
) -> None:
    """A mounted volume's file is cut under the reader's feet: an error, not a dead process."""
    one = reader(store.root)
    _, shards = one.shards()
    file = shards.get(1)
    path = store.root / name_of(1)
    with path.open("r+b") as opened:
        opened.truncate(200)
    rows = {"latent": memoryview(bytearray(32))}
    with pytest.raises(ShardError, match=rf"{name_of(1)}: sample 9 cannot be read"):
        file.read(9, rows, (16, 16))
    shards.close()


def test_opening_waits_for_a_store_that_stumbles(reader: MakeReader, store: FaultyFolder) -> None:
    """The index too is asked for again; what is not there is not."""

    def stumbles(name: str, before: int) -> None:
        if name == "index.json" and before == 0:
            raise TimeoutError("timed out")

    store.fault = stumbles
    assert len(reader(URL).corpus()) == SAMPLES
    assert store.requests == {"index.json": 2, "dataset.json": 1, "skip.json": 1}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("The AWS Access Key Id does not exist"), "Access Key"),
        (FileNotFoundError("The specified key does not exist"), "there is no index.json"),
        (no_bucket(), "cannot be opened: NoSuchBucket: The specified bucket does not exist"),
    ],
)
def test_wrong_credentials_or_bucket_are_said_at_once(
    reader: MakeReader, store: FaultyFolder, error: Exception, words: str
) -> None:
    """Before any training, in one line, without retries."""

    def refused(_name: str, _before: int) -> None:
        raise error

    store.fault = refused
    with pytest.raises(DatasetError, match=words):
        reader(URL).corpus()
    assert store.requests["index.json"] == 1


def test_a_scheme_that_nobody_knows(reader: MakeReader) -> None:
    """A mistyped address is one line too."""
    with pytest.raises(DatasetError, match=r"s4://bucket.*cannot be opened"):
        reader("s4://bucket").corpus()


@pytest.mark.parametrize("compression", ["zstd", "zstd:7", "gz"])
def test_compressed_shards(reader: MakeReader, faulty: FaultyFolder, compression: str) -> None:
    """Whatever the library's writer can compress; in a store and on a mounted volume."""
    write_latents(faulty.root, [10] * 6, compression=compression)
    expected = numbers(reader(faulty.root))
    assert sorted(expected) == list(range(SAMPLES))
    assert numbers(reader(URL, cache=faulty.root.parent / "other")) == expected


def test_any_fsspec_store_will_do(reader: MakeReader, store: FaultyFolder, tmp_path: Path) -> None:
    """The same batches from memory as from the disk."""
    fs = fsspec.filesystem("memory")
    fs.put(str(store.root), "/data-path-test/set", recursive=True)
    assert numbers(reader("memory://data-path-test/set")) == numbers(reader(store.root))
    fs.rm("/data-path-test", recursive=True)
