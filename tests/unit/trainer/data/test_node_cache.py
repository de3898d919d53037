"""The node's cache: several processes fill it, any may be killed, and nobody gets a wrong byte."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from faulty_data_store import FaultyFolder
from mds_folders import name_of, write_latents

from daybreak_trainer.data.cache import NodeCache, touch
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.errors import DataUnavailableError
from daybreak_trainer.prepare.prepare import prepare

SUPPORT = Path(__file__).parents[3] / "support"
SHARDS = 6
MakeReader = Callable[..., Any]


class Node:
    """Processes that share one cache."""

    def __init__(self, remote: Path, cache: Path, limit: int = 0, seconds: float = 0.0) -> None:
        self.cache = cache
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(SUPPORT / "data_cache_process.py"),
                *(str(remote), str(cache), str(limit), str(seconds)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        )
        self.results: dict[int, str] = {}

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def start(self, *numbers: int) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, numbers)) + "\n")
        self._process.stdin.flush()
        while True:
            pid, _, result = self._line().strip().partition(" ")
            if not result:
                return int(pid)
            self.results[int(pid)] = result

    def result(self, pid: int) -> str:
        while pid not in self.results:
            found, _, result = self._line().strip().partition(" ")
            self.results[int(found)] = result
        return self.results[pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def files(self) -> list[Path]:
        return [p for p in self.cache.rglob("*") if p.is_file() and ".locks" not in p.parts]


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote"
    folder.mkdir()
    write_latents(folder, [200] * SHARDS)
    return folder


@pytest.fixture
def node(remote: Path, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**options: Any) -> Node:
        made.append(Node(remote, tmp_path / "cache", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_processes_that_need_the_same_shards_download_them_once(node: Callable[..., Node]) -> None:
    """Four ranks of a pod begin with the same shards, in other orders: each is fetched by one of
    them, and all get it."""
    one = node(seconds=0.01)
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]]
    results = [one.result(pid) for pid in [one.start(*order) for order in orders]]
    assert all(result.startswith("ok") for result in results)
    assert sum(int(result.split()[1]) for result in results) == 4
    assert sorted(path.name for path in one.files()) == [name_of(n) for n in range(4)]


def test_a_kill_at_any_point_leaves_a_cache_that_works(
    node: Callable[..., Node], remote: Path
) -> None:
    """Forty processes that are killed at random moments, two at work at a time: what is under a
    final name is whole at every moment, the next process is never held up, and leftovers go."""
    one = node(seconds=0.004)
    moments = random.Random(0)
    originals = {path.name: path.read_bytes() for path in remote.glob("*.mds")}
    for _ in range(20):
        pids = [one.start(*moments.sample(range(SHARDS), SHARDS)) for _ in range(2)]
        time.sleep(moments.uniform(0, 0.12))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for path in one.files():
            if ".partial-" not in path.name:
                assert path.read_bytes() == originals[path.name]
        if moments.random() < 0.4:
            for path in one.files():
                path.unlink(missing_ok=True)
    assert one.result(one.start(*range(SHARDS))).startswith("ok")
    assert sorted(path.name for path in one.files()) == sorted(originals)


def test_a_waiting_process_takes_over_from_a_killed_one(node: Callable[..., Node]) -> None:
    """The kernel gives the dead process's lock to the one that waited for its download."""
    one = node(seconds=0.5)
    first = one.start(0)
    deadline = time.monotonic() + 20
    while not one.files() and time.monotonic() < deadline:
        time.sleep(0.01)
    (partial,) = one.files()
    assert str(first) in partial.name
    second = one.start(0)
    os.kill(first, signal.SIGKILL)
    assert one.result(second) == "ok 1"
    assert [path.name for path in one.files()] == [name_of(0)]


def test_two_processes_keep_one_limit(node: Callable[..., Node], remote: Path) -> None:
    """While both fill it, what is there, partial files at their full size included, never exceeds
    the limit; and both get all their shards, one after the other."""
    limit = 4 * max(path.stat().st_size for path in remote.glob("*.mds"))
    one = node(limit=limit, seconds=0.002)
    pids = [one.start(*(order * 3)) for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])]
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.002):
            used = 0
            for path in one.files():
                try:
                    used += path.stat().st_size
                except FileNotFoundError:
                    continue
            largest = max(largest, used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = [one.result(pid) for pid in pids]
    done.set()
    watcher.join()
    assert all(result.startswith("ok") for result in results), results
    assert 0 < largest <= limit


def test_what_was_not_used_for_longest_goes_first(reader: MakeReader, faulty: FaultyFolder) -> None:
    """Not what was downloaded first: a shard that is read again stays."""
    write_latents(faulty.root, [50] * 4)
    sizes = [(faulty.root / name_of(number)).stat().st_size for number in range(4)]
    one = reader("faulty://store", limit_bytes=3 * max(sizes) + 100)
    for number in (0, 1, 2, 0):
        _, shards = one.shards()
        shards.get(number)
        shards.close()
        time.sleep(0.02)
    _, shards = one.shards()
    shards.get(3)
    shards.close()
    assert sorted(path.name for path in one.cache.rglob("*.mds")) == [name_of(n) for n in (0, 2, 3)]
    assert one.counts.evicted_bytes == sizes[1]


def test_what_is_being_read_is_not_evicted(tmp_path: Path) -> None:
    """The limit is exceeded, and that is said, rather than to pull a file from under a reader."""
    cache = NodeCache(tmp_path, 100, DataCounters())
    running = threading.Event()
    held = []
    for number in range(2):
        partial = cache.partial(tmp_path / "d" / str(number), 50, running)
        partial.path.write_bytes(bytes(50))
        cache.publish(partial, tmp_path / "d" / str(number), threading.Event())
        held.append(cache.open(tmp_path / "d" / str(number)))
    cache.partial(tmp_path / "d" / "2", 50, running).discard()
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["0", "1"]
    for descriptor in held:
        assert descriptor is not None
        touch(descriptor)
        os.close(descriptor)
    cache.partial(tmp_path / "d" / "2", 50, running).discard()
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["1"]


def test_a_smaller_limit_holds_from_the_start(tmp_path: Path) -> None:
    """A pod that comes back with less room does not wait for its first download."""
    cache = NodeCache(tmp_path, None, DataCounters())
    for number in range(4):
        partial = cache.partial(tmp_path / "d" / str(number), 50, threading.Event())
        partial.path.write_bytes(bytes(50))
        cache.publish(partial, tmp_path / "d" / str(number), threading.Event())
    NodeCache(tmp_path, 100, DataCounters())
    assert len(list((tmp_path / "d").iterdir())) == 2


def _fills_up(capacity: int, cache: Path) -> Callable[[str, int], None]:
    """The store's answer finds no room on the cache's volume."""

    def fault(name: str, _before: int) -> None:
        used = sum(path.stat().st_size for path in cache.rglob("*.mds"))
        if name.endswith(".mds") and used >= capacity:
            raise OSError(errno.ENOSPC, "No space left on device")

    return fault


def test_a_full_volume_gives_up_old_shards(reader: MakeReader, faulty: FaultyFolder) -> None:
    """The volume is smaller than the limit, or somebody else fills it: old shards make room, and
    training goes on."""
    write_latents(faulty.root, [50] * 5)
    size = (faulty.root / name_of(0)).stat().st_size
    one = reader("faulty://store")
    faulty.fault = _fills_up(2 * size, one.cache)
    _, shards = one.shards(downloads=1)
    for number in range(5):
        assert shards.get(number).text(0, "caption") == f"number {number * 50}"
    shards.close()
    assert len(list(one.cache.rglob("*.mds"))) == 2
    assert one.counts.retries == 0


def test_a_volume_without_room_says_so(reader: MakeReader, faulty: FaultyFolder) -> None:
    """Nothing can be given up: the error names the shard and the volume, and is not the data's
    fault; no remnant stays."""
    write_latents(faulty.root, [50] * 2)
    one = reader("faulty://store")
    faulty.fault = _fills_up(0, one.cache)
    _, shards = one.shards()
    with pytest.raises(DataUnavailableError, match=rf"{name_of(1)}: the cache's volume is full"):
        shards.get(1)
    shards.close()
    assert [path for path in one.cache.rglob("*") if ".mds" in path.name] == []


def test_a_damaged_copy_is_fetched_again(reader: MakeReader, faulty: FaultyFolder) -> None:
    """It says nothing about the original; what is whole is not fetched a second time."""
    write_latents(faulty.root, [50] * 2)
    one = reader("faulty://store")
    _, shards = one.shards()
    for number in (0, 1):
        shards.get(number)
    shards.close()
    (cached,) = one.cache.rglob(name_of(1))
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    _, shards = one.shards()
    for number in (0, 1):
        assert shards.get(number).text(49, "caption") == f"number {number * 50 + 49}"
    shards.close()
    assert faulty.requests[name_of(0)] == 1
    assert faulty.requests[name_of(1)] == 2
    assert cached.read_bytes() == (faulty.root / name_of(1)).read_bytes()


def test_a_shard_in_the_cache_waits_for_no_download(
    reader: MakeReader, faulty: FaultyFolder
) -> None:
    """Of any other shard, nor for whoever holds its own lock: the lock is for those that are not
    there."""
    write_latents(faulty.root, [5] * 2)
    one = reader("faulty://store")
    _, shards = one.shards()
    shards.get(0)
    shards.close()
    cache = NodeCache(one.cache, None, DataCounters())
    (path,) = one.cache.rglob(name_of(0))
    _, shards = one.shards()
    with cache.alone(path, threading.Event()), ThreadPoolExecutor(1) as pool:
        text = pool.submit(lambda: shards.get(0).text(0, "caption")).result(timeout=10)
    assert text == "number 0"
    shards.close()


def test_a_cache_that_is_too_small_is_said(
    reader: MakeReader, faulty: FaultyFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards that come twice in one epoch, once for many; those of the next epoch are no sign."""
    write_latents(faulty.root, [50] * 4)
    size = (faulty.root / name_of(0)).stat().st_size
    with caplog.at_level("WARNING"):
        one = reader("faulty://store", limit_bytes=2 * size + 100)
        _, shards = one.shards(downloads=1)
        for epoch in range(3):
            for number in range(4):
                shards.announce({number: epoch})
                shards.get(number)
        assert "cache_too_small" not in caplog.messages
        for number in (0, 1, 2, 3, 0, 1, 2, 3):
            shards.announce({number: 3})
            shards.get(number)
        shards.close()
    assert caplog.messages.count("cache_too_small") == 1


def test_nothing_is_left_in_shared_memory(tmp_path: Path) -> None:
    """By a rank that is killed while it decodes images: the kernel would keep it for ever."""
    prepare("shapes", tmp_path / "images", count=64)
    before = _shared_memory()
    process = subprocess.Popen(
        [
            sys.executable,
            str(SUPPORT / "loader_process.py"),
            *(str(tmp_path / "images"), str(tmp_path / "cache")),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["batch\n"] * 3
    process.kill()
    process.wait()
    process.stdout.close()
    left = _shared_memory() - before
    assert left - _used_by_others() == set()


def _shared_memory() -> set[str]:
    """This user's entries, by whatever name."""
    entries = Path("/dev/shm").rglob("*")
    return {str(path) for path in entries if path.lstat().st_uid == os.getuid()}


def _used_by_others() -> set[str]:
    """What other processes of this machine have mapped or open at this moment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            maps = (process / "maps").read_text().splitlines()
            found |= {line.split(maxsplit=5)[5] for line in maps if "/dev/shm/" in line}
            found |= {str(file.readlink()) for file in (process / "fd").iterdir()}
    return found


def test_two_datasets_do_not_share_cached_shards(reader: MakeReader, faulty: FaultyFolder) -> None:
    """Shards have the same names everywhere; the cache keeps datasets apart."""
    for name, first in (("one", 0), ("other", 100)):
        (faulty.root / name).mkdir()
        write_latents(faulty.root / name, [5], first=first)
    for name, first in (("one", 0), ("other", 100), ("one", 0)):
        _, shards = reader(f"faulty://store/{name}").shards()
        assert shards.get(0).text(0, "caption") == f"number {first}"
        shards.close()
    assert faulty.requests[name_of(0)] == 2


def test_threads_that_need_the_same_shard_share_one_download(
    reader: MakeReader, faulty: FaultyFolder
) -> None:
    """Eight threads that meet at unread shards all get the right ones."""
    write_latents(faulty.root, [5] * 4)
    corpus, shards = reader("faulty://store").shards()
    gate = threading.Barrier(8)

    def texts(offset: int) -> list[str]:
        gate.wait()
        numbers = [(number + offset) % 4 for number in range(4)]
        return sorted(shards.get(number).text(0, "caption") for number in numbers)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(texts, range(8)))
    assert results == [sorted(f"number {shard.first}" for shard in corpus.shards)] * 8
    assert {faulty.requests[name_of(number)] for number in range(4)} == {1}
    shards.close()
