"""The dataset reader: right samples, or an error that names the shard. Never a silent wrong one."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from daybreak_trainer.data.errors import DatasetError, ShardError
from daybreak_trainer.data.mds import open_dataset
from daybreak_trainer.prepare.prepare import prepare

SAMPLES = 24
SECOND = "shard.00001.mds"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few shards."""
    out = tmp_path_factory.mktemp("pristine") / "shapes"
    prepare("shapes", out, count=SAMPLES, shard_bytes=1 << 12)
    assert (out / SECOND).exists()
    return out


@pytest.fixture
def local(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "dataset"))


@pytest.fixture
def remote(pristine: Path) -> Iterator[str]:
    """The same dataset in a store that is not this machine's disk."""
    fs = fsspec.filesystem("memory")
    fs.put(str(pristine), "/bucket/shapes", recursive=True)
    yield "memory://bucket/shapes"
    fs.rm("/bucket", recursive=True)


def truncate(data: bytes) -> bytes:
    return data[:-1]


def extend(data: bytes) -> bytes:
    return data + b"\0"


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = [(truncate, "bytes instead of"), (extend, "bytes instead of"), (flip, "is damaged")]


def read_all(url: str, cache: Path) -> list[str]:
    dataset = open_dataset(url, {}, cache)
    return [dataset.get(index).caption for index in range(len(dataset))]


def of_second(folder: Path) -> range:
    """Indices of the second shard's samples."""
    shards = json.loads((folder / "index.json").read_text())["shards"]
    return range(shards[0]["samples"], shards[0]["samples"] + shards[1]["samples"])


def test_a_remote_dataset_reads_like_a_local_one(local: Path, remote: str, tmp_path: Path) -> None:
    """Same samples, same fingerprint, words and resolution; only the way to the bytes differs."""
    here = open_dataset(str(local), {}, tmp_path / "a")
    there = open_dataset(remote, {}, tmp_path / "b")
    assert here.fingerprint == there.fingerprint
    assert here.vocabulary == there.vocabulary
    assert here.resolution == there.resolution == 32
    for index in range(SAMPLES):
        one, other = here.get(index), there.get(index)
        assert np.array_equal(one.image, other.image)
        assert (one.caption, one.id) == (other.caption, other.id)
        assert one.image.shape == (3, 32, 32)


def test_mosaicml_streaming_reads_the_shards(local: Path) -> None:
    """Other tools can use what `prepare` writes: the library's own reader sees the same."""
    from streaming.base.format import reader_from_json

    shards = json.loads((local / "index.json").read_text())["shards"]
    dataset = open_dataset(str(local), {}, local)
    index = 0
    for shard in shards:
        reader = reader_from_json(str(local), None, shard)
        for position in range(shard["samples"]):
            row = reader.get_item(position)
            assert row["caption"] == dataset.get(index).caption
            index += 1
    assert index == SAMPLES


@pytest.mark.parametrize("index", [-1, SAMPLES])
def test_there_is_no_sample_past_the_ends(local: Path, tmp_path: Path, index: int) -> None:
    """An index out of range is an error, not some other sample."""
    with pytest.raises(IndexError):
        open_dataset(str(local), {}, tmp_path).get(index)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_local_shard_is_named(
    local: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    """Truncated, grown, or one bit flipped: no sample of that shard is handed out, the error names
    it and says what to do; the other shards are still good."""
    path = local / SECOND
    path.write_bytes(damage(path.read_bytes()))
    dataset = open_dataset(str(local), {}, tmp_path / "cache")
    assert dataset.get(0).caption
    for index in of_second(local):
        with pytest.raises(ShardError, match=rf"{SECOND}.*{message}.*prepare the dataset again"):
            dataset.get(index)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_remote_shard_is_named(
    remote: str, pristine: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    """The same through a download, and nothing of it stays in the cache."""
    fs = fsspec.filesystem("memory")
    fs.pipe(f"/bucket/shapes/{SECOND}", damage((pristine / SECOND).read_bytes()))
    dataset = open_dataset(remote, {}, tmp_path / "cache")
    with pytest.raises(ShardError, match=rf"{SECOND}.*{message}"):
        dataset.get(of_second(pristine)[0])
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_missing_local_shard_is_named(local: Path, tmp_path: Path) -> None:
    """A missing file is an error at its first sample, and not a shorter epoch."""
    (local / SECOND).unlink()
    dataset = open_dataset(str(local), {}, tmp_path)
    assert len(dataset) == SAMPLES
    with pytest.raises(ShardError, match=rf"{SECOND} is missing"):
        dataset.get(of_second(local)[0])


def test_a_missing_remote_shard_is_named(remote: str, pristine: Path, tmp_path: Path) -> None:
    """The same for a store."""
    fsspec.filesystem("memory").rm(f"/bucket/shapes/{SECOND}")
    with pytest.raises(ShardError, match=rf"{SECOND} is missing"):
        open_dataset(remote, {}, tmp_path).get(of_second(pristine)[0])


def test_a_shard_that_changes_while_in_use_is_named(local: Path, tmp_path: Path) -> None:
    """Verified once, then cut or removed under the reader's feet: still an error with its name."""
    dataset = open_dataset(str(local), {}, tmp_path)
    index = of_second(local)[-1]
    dataset.get(index)
    path = local / SECOND
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ShardError, match=SECOND):
        dataset.get(index)
    path.unlink()
    with pytest.raises(ShardError, match=SECOND):
        dataset.get(index)


def test_the_cache_serves_a_second_process_and_heals(remote: str, tmp_path: Path) -> None:
    """Another reader of the same cache downloads nothing; a damaged copy is fetched again, for it
    says nothing about the original."""
    captions = read_all(remote, tmp_path / "cache")
    fs = fsspec.filesystem("memory")
    originals = {path: fs.cat(path) for path in fs.glob("/bucket/shapes/*.mds")}
    fs.rm(list(originals))
    assert read_all(remote, tmp_path / "cache") == captions
    for path, data in originals.items():
        fs.pipe(path, data)
    (cached,) = (tmp_path / "cache").rglob(SECOND)
    cached.write_bytes(flip(cached.read_bytes()))
    assert read_all(remote, tmp_path / "cache") == captions


def test_two_datasets_do_not_share_cached_shards(
    remote: str, pristine: Path, tmp_path: Path
) -> None:
    """Shards have the same names everywhere; the cache keeps datasets apart."""
    prepare("shapes", tmp_path / "other", count=SAMPLES, seed=1, shard_bytes=1 << 12)
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "other"), "/bucket/other", recursive=True)
    one = read_all(remote, tmp_path / "cache")
    other = read_all("memory://bucket/other", tmp_path / "cache")
    assert one == read_all(str(pristine), tmp_path / "unused")
    assert other == read_all(str(tmp_path / "other"), tmp_path / "unused")
    assert one != other


def test_threads_may_read_at_once(remote: str, pristine: Path, tmp_path: Path) -> None:
    """Eight threads that meet at an unread shard all get their own samples, right ones."""
    dataset = open_dataset(remote, {}, tmp_path / "cache")
    gate = threading.Barrier(8)

    def read(offset: int) -> dict[int, str]:
        gate.wait()
        order = [(index + offset * 3) % SAMPLES for index in range(SAMPLES)]
        return {index: dataset.get(index).caption for index in order}

    expected = dict(enumerate(read_all(str(pristine), tmp_path / "unused")))
    with ThreadPoolExecutor(8) as pool:
        assert all(result == expected for result in pool.map(read, range(8)))


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def containing(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def column(name: str, encoding: str) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        for shard in index["shards"]:
            at = shard["column_names"].index(name)
            shard["column_encodings"][at] = encoding

    return change


def first(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["shards"][0].update({key: value})


def raw(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda index: index["shards"][0]["raw_data"].update({key: value})


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without("index.json"), "there is no index.json"),
        (without("dataset.json"), "there is no dataset.json"),
        (containing("index.json", "{"), "not an MDS index"),
        (containing("index.json", "[]"), "not an MDS index"),
        (containing("dataset.json", "{}"), "dataset.json: source"),
        (edited(lambda index: index["shards"].clear()), "the dataset is empty"),
        (edited(first("compression", "zstd")), "not uncompressed"),
        (edited(first("column_names", ["caption", "id"])), "not an MDS index|no column image"),
        (edited(column("image", "int")), "column image is int; it must be png"),
        (edited(column("caption", "bytes")), "column caption is bytes; it must be str"),
        (edited(column("caption", "pkl")), "column caption is pkl"),
        (edited(raw("hashes", {})), "no xxh64 hash"),
        (edited(raw("basename", "../elsewhere.mds")), "lies outside"),
        (edited(lambda index: index["shards"].pop()), "not of one dataset"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_at_once(
    local: Path, tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    """A wrong dataset is refused when it is opened, before a GPU waits for it, and says why."""
    break_it(local)
    with pytest.raises(DatasetError, match=message):
        open_dataset(str(local), {}, tmp_path)


def test_a_pickled_column_is_refused(local: Path, tmp_path: Path) -> None:
    """The library decodes every column of a sample, and unpickling runs what the file says: a
    dataset with such a column is not opened, even where training would not look at it."""

    def add_pickle(index: dict[str, Any]) -> None:
        for shard in index["shards"]:
            shard["column_names"].append("extra")
            shard["column_encodings"].append("pkl")
            shard["column_sizes"].append(None)

    edited(add_pickle)(local)
    with pytest.raises(DatasetError, match="column extra is pickled"):
        open_dataset(str(local), {}, tmp_path)


@pytest.mark.parametrize("url", ["nosuchscheme://bucket/data", "/no/such/folder"])
def test_a_url_that_leads_nowhere_is_named(url: str, tmp_path: Path) -> None:
    """A typo in the run's stream gives a message with the URL."""
    with pytest.raises(DatasetError, match=url):
        open_dataset(url, {}, tmp_path)
