"""Storage on real servers of both kinds of bucket: large files in parts, and everything that goes
wrong between the two is passed over or said, in bounded time; never is half a file visible."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bucket_server import BucketServer
from s3_proxy import CutError, Exchange, Hook, S3Proxy, nothing
from s3_server import S3Server

from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.stores.patience import Patience

HASTY = Patience(
    connect_seconds=0.5, silence_seconds=1.0, total_seconds=1.5, slowest_bytes_per_second=20 << 20
)
_BOUND_SECONDS = 60.0
"""1.5 s of repeating, a last request of 1.8 s, one try to clean up, and a machine that may stand
still for a while. The usual patience is 90 s and more."""


def content(size: int) -> bytes:
    return bytes(number % 251 for number in range(1 << 12)) * (size >> 12) + bytes(size % (1 << 12))


def storage(
    server: BucketServer, bucket: str, patience: Patience | None = None, **options: Any
) -> Storage:
    given = server.options() | server.small_parts() | options
    place = Storage(f"{server.scheme}://{bucket}/folder", given, patience)
    if server.scheme == "s3":
        place.fs.connect()  # reads botocore's models: no part of what is measured
    return place


def through(
    server: BucketServer, before: Hook, after: Hook = nothing
) -> tuple[S3Proxy, Storage, str]:
    """A proxy in front of the server, a storage that speaks to it, and its bucket."""
    bucket = server.new_bucket()
    proxy = S3Proxy(server.url, before, after)
    return proxy, storage(server, bucket, endpoint_url=proxy.url), bucket


@pytest.mark.parametrize(
    ("parts", "more"), [(0, 0), (0, 1), (1, -1), (1, 0), (1, 1), (2, 0), (3, 7)]
)
def test_the_store_has_what_was_written(bucket_server: BucketServer, parts: int, more: int) -> None:
    """At every edge between one request and several parts: nothing had to be read back, because
    the checksum is the one that was foretold."""
    read: list[str] = []

    def look(exchange: Exchange) -> None:
        if bucket_server.reads(exchange):
            read.append(exchange.path)

    size = parts * bucket_server.part_bytes + more
    data, name = content(size), "a shard/ü?#%"
    proxy, place, _ = through(bucket_server, look)
    with proxy:
        with place.create(name) as stream:
            for start in range(0, size, piece := bucket_server.part_bytes * 3 // 5):
                stream.write(memoryview(data)[start : start + piece])
        assert not read
        assert place.verify(name, stream.record()) is None
        assert place.record(name) == stream.record()
        assert place.read(name) == data
        assert read
        if size > 3:
            assert place.read_range(name, size - 3, size + 5) == data[-3:]


def test_every_third_request_fails(bucket_server: BucketServer) -> None:
    """Throttled, broken and failing in turn: all of it is asked for again."""
    before, after = bucket_server.stand_in()

    def fail(exchange: Exchange) -> None:
        if exchange.number % 9 == 2:
            bucket_server.throttle(exchange)
        elif exchange.number % 9 == 5:
            raise CutError
        elif exchange.number % 9 == 8:
            bucket_server.fail(exchange)
        else:
            before(exchange)

    proxy, place, _ = through(bucket_server, fail, after)
    with proxy:
        record = place.write("a/one", content(3 * bucket_server.part_bytes + 9))
        place.write("a/two", b"2")
        assert place.record("a/one") == record
        assert place.read("a/two") == b"2"
        assert place.files() == ["a/one", "a/two"]
        assert place.folders() == ["a"]
        place.remove("a")
        assert place.files() == []
    assert len(proxy.seen) > 18


def test_a_lost_answer_to_a_finished_upload_is_no_failure(bucket_server: BucketServer) -> None:
    """The file is there, its answer never came, and the upload is not known any more."""
    cut: list[str] = []

    def lose(exchange: Exchange) -> None:
        if bucket_server.ends_upload(exchange) and not cut:
            cut.append(exchange.path)
            raise CutError

    proxy, place, bucket = through(bucket_server, nothing, lose)
    with proxy:
        record = place.write("shard", content(bucket_server.part_bytes + 3))
        assert cut
    assert storage(bucket_server, bucket).record("shard") == record


def test_an_answer_that_breaks_off_is_asked_for_again(bucket_server: BucketServer) -> None:
    """A short answer is not the file."""
    cut: list[str] = []

    def breaks(exchange: Exchange) -> None:
        if bucket_server.reads(exchange) and not cut:
            cut.append(exchange.path)
            exchange.cut_after = 5

    proxy, place, _ = through(bucket_server, nothing, breaks)
    with proxy:
        place.write("shard", b"0123456789")
        assert place.read("shard") == b"0123456789"
        assert cut


def test_a_frozen_server_is_given_up(own_bucket_server: BucketServer) -> None:
    """Connections stay open and nothing comes: the URL and the operation are said, in time; what
    was begun is not visible later."""
    server, bucket = own_bucket_server, own_bucket_server.new_bucket()
    storage(server, bucket).write("there", b"1")
    place = storage(server, bucket, HASTY)
    server.freeze()
    calls: list[tuple[str, Callable[[], object]]] = [
        # Of a write whose answer does not come it is looked up whether it was done.
        ("(write|look up)", lambda: place.write("small", b"x")),
        ("(write|look up)", lambda: place.write("large", content(3 * server.part_bytes))),
        ("read", lambda: place.read("there")),
        ("list", place.files),
        ("list", place.folders),
        ("look up", lambda: place.exists("there")),
        ("remove", lambda: place.remove("there")),
    ]

    def call(item: tuple[str, Callable[[], object]]) -> float:
        started = time.monotonic()
        with pytest.raises(StorageError, match=f"{place.url}.*: cannot {item[0]}: "):
            item[1]()
        return time.monotonic() - started

    with ThreadPoolExecutor(len(calls)) as pool:
        assert max(pool.map(call, calls)) < _BOUND_SECONDS
    server.thaw()
    assert "large" not in storage(server, bucket).files()


def test_a_server_that_freezes_during_an_upload(own_s3: S3Server) -> None:
    """The stream fails in time, although the kernel still takes bytes; later nothing is visible,
    and the same file can be written. On S3 alone: the emulator of Cloud Storage takes the question
    how much of an upload has arrived for the upload's end."""
    server, bucket = own_s3, own_s3.new_bucket()
    place, part = storage(server, bucket, HASTY), own_s3.part_bytes

    def write(freeze: bool) -> None:
        with place.create("shard") as stream:
            stream.write(content(part + 1))
            if freeze:
                server.freeze()
            stream.write(content(4 * part))

    started = time.monotonic()
    with pytest.raises(StorageError, match=f"{place.url}/shard: cannot write: "):
        write(freeze=True)
    assert time.monotonic() - started < _BOUND_SECONDS
    server.thaw()
    place = storage(server, bucket)
    assert place.files() == []
    write(freeze=False)
    assert place.size("shard") == 5 * part + 1


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.read("x"),
        lambda s: s.exists("x"),
        lambda s: s.files(),
        lambda s: s.folders(),
        lambda s: s.write("x", b""),
        lambda s: s.write("x", content(6 << 20)),
        lambda s: s.remove("x"),
    ],
)
def test_a_missing_bucket_is_neither_empty_nor_made(
    bucket_server: BucketServer, call: Callable[[Storage], object]
) -> None:
    """A run must not begin afresh because its bucket's name has a slip in it."""
    place = storage(bucket_server, "no-such-bucket")
    for _ in range(2):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            call(place)
