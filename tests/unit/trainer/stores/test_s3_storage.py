"""Storage on a real S3 server: large files in parts, and everything that goes wrong between the
two is either passed over or said, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_proxy import CutError, Exchange, S3Proxy, nothing
from s3_server import Keys, S3Server

from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.stores.patience import Patience

MIB = 1 << 20
PART = 5 * MIB
"""The smallest part that S3 takes."""
HASTY = Patience(
    connect_seconds=0.5, silence_seconds=1.0, total_seconds=1.5, slowest_bytes_per_second=20 * MIB
)
_BOUND_SECONDS = 15.0
"""1.5 s of repeating, a last request of 1.8 s, one try to clean up, and a busy machine."""


def content(size: int, seed: int = 0) -> bytes:
    return bytes((seed + number) % 251 for number in range(256)) * (size // 256) + bytes(size % 256)


def storage(
    server: S3Server,
    bucket: str,
    patience: Patience | None = None,
    keys: Keys | None = None,
    **options: Any,
) -> Storage:
    given = server.options(keys) | {"default_block_size": PART} | options
    place = Storage(f"s3://{bucket}/folder", given, patience)
    place.fs.connect()  # reads botocore's models: no part of what is measured
    return place


def through(
    server: S3Server, before: Callable[[Exchange], None], after: Callable[[Exchange], None]
) -> tuple[S3Proxy, Storage, str]:
    """A proxy in front of the server, and a storage that speaks to it."""
    bucket = server.new_bucket()
    proxy = S3Proxy(server.url, before, after)
    return proxy, storage(server, bucket, endpoint_url=proxy.url), bucket


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 7])
def test_the_store_has_what_was_written(s3: S3Server, size: int) -> None:
    """At every edge between one request and several parts: nothing had to be read back, because
    the ETag is the one that was foretold."""
    with S3Proxy(s3.url) as proxy:
        place = storage(s3, s3.new_bucket(), endpoint_url=proxy.url)
        data = content(size)
        with place.create("shard") as stream:
            for start in range(0, size, 3 * MIB):
                stream.write(memoryview(data)[start : start + 3 * MIB])
        assert not [request for request in proxy.seen if request.startswith("GET")]
    assert place.verify("shard", stream.record()) is None
    with S3Proxy(s3.url):
        direct = Storage(place.url, s3.options())
        assert direct.record("shard") == stream.record()


def test_an_upload_that_is_given_up_leaves_nothing(s3: S3Server) -> None:
    """No file, and no parts that somebody pays for."""
    bucket = s3.new_bucket()
    place = storage(s3, bucket)

    def fail() -> None:
        with place.create("shard") as stream:
            stream.write(content(2 * PART + 1))
            raise RuntimeError("gave up")

    with pytest.raises(StorageError, match="gave up"):
        fail()
    assert place.files() == []
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)


def test_more_files_than_s3_lists_at_a_time(s3: S3Server) -> None:
    """Listings are complete past the 1,000th name, and so is a removal."""
    bucket = s3.new_bucket()
    names = [f"step/{number:04d}" for number in range(1_001)]
    (s3.folder(bucket) / "folder" / "step").mkdir(parents=True)
    for name in names:
        (s3.folder(bucket) / "folder" / name).touch()
    place = storage(s3, bucket)
    assert place.files() == names
    place.remove("step")
    assert place.files() == []


def test_every_third_request_fails(s3: S3Server) -> None:
    """Throttled, broken and failing in turn: all of it is asked for again."""

    def fail(exchange: Exchange) -> None:
        if exchange.number % 9 == 2:
            exchange.answer(503, "SlowDown")
        elif exchange.number % 9 == 5:
            raise CutError
        elif exchange.number % 9 == 8:
            exchange.answer(500, "InternalError")

    proxy, place, _ = through(s3, fail, nothing)
    with proxy:
        record = place.write("a/one", content(2 * PART + 9))
        place.write("a/two", b"2")
        assert place.record("a/one") == record
        assert place.read("a/two") == b"2"
        assert place.files() == ["a/one", "a/two"]
        assert place.folders() == ["a"]
        place.remove("a")
        assert place.files() == []
    assert len(proxy.seen) > 20


def test_a_lost_answer_to_a_finished_upload_is_no_failure(s3: S3Server) -> None:
    """The upload was completed, its answer never came, and the second request finds no upload."""
    cut: list[str] = []

    def lose(exchange: Exchange) -> None:
        if exchange.method == "POST" and "uploadId=" in exchange.path and not cut:
            cut.append(exchange.path)
            raise CutError

    proxy, place, bucket = through(s3, nothing, lose)
    with proxy:
        record = place.write("shard", content(PART + 3))
        assert cut
    assert storage(s3, bucket).record("shard") == record


def test_what_is_damaged_on_its_way_is_sent_again(s3: S3Server) -> None:
    """The server refuses a body that is not the one that was signed."""
    damaged: list[str] = []

    def flip(exchange: Exchange) -> None:
        if exchange.method == "PUT" and "partNumber=2" in exchange.path and not damaged:
            damaged.append(exchange.path)
            exchange.body = exchange.body[:-1] + bytes([exchange.body[-1] ^ 1])

    proxy, place, bucket = through(s3, flip, nothing)
    with proxy:
        record = place.write("shard", content(2 * PART))
        assert damaged
    assert storage(s3, bucket).record("shard") == record


def test_a_store_whose_checksums_are_others_is_read_back(s3: S3Server) -> None:
    """An ETag need not be an MD5 (SSE-KMS, for one): then the content decides."""

    def other(exchange: Exchange) -> None:
        if exchange.method == "HEAD" and "ETag" in exchange.headers:
            exchange.headers["ETag"] = '"0123456789abcdef0123456789abcdef"'

    proxy, place, _ = through(s3, nothing, other)
    with proxy:
        assert place.write("shard", b"weights").size == 7
        assert [request.split()[0] for request in proxy.seen] == ["PUT", "HEAD", "HEAD", "GET"]


def test_a_store_that_has_something_else_is_found_out(s3: S3Server) -> None:
    """As many bytes, but others, right after they were written."""
    bucket = s3.new_bucket()

    def replace(exchange: Exchange) -> None:
        if exchange.method == "HEAD":
            s3.client().put_object(Bucket=bucket, Key="folder/shard", Body=b"weighTs")

    with S3Proxy(s3.url, replace) as proxy:
        place = storage(s3, bucket, endpoint_url=proxy.url)
        with pytest.raises(StorageError, match=f"s3://{bucket}/folder/shard: .* other bytes"):
            place.write("shard", b"weights")


def test_a_frozen_server_is_given_up(own_s3: S3Server) -> None:
    """Connections stay open and nothing comes: the URL and the operation are said, in time."""
    bucket = own_s3.new_bucket()
    storage(own_s3, bucket).write("there", b"1")
    place = storage(own_s3, bucket, HASTY)
    own_s3.freeze()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("write", lambda: place.write("a", b"x")),
        ("write", lambda: place.write("a", content(2 * PART))),
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


def test_a_server_that_freezes_during_an_upload(own_s3: S3Server) -> None:
    """The stream fails in time, although the kernel still takes bytes; later nothing is visible,
    and the same file can be written."""
    bucket = own_s3.new_bucket()
    place = storage(own_s3, bucket, HASTY)

    def write(freeze: bool) -> None:
        with place.create("shard") as stream:
            stream.write(content(PART + 1))
            if freeze:
                own_s3.freeze()
            stream.write(content(4 * PART))

    started = time.monotonic()
    with pytest.raises(StorageError, match=f"{place.url}/shard: cannot write: "):
        write(freeze=True)
    assert time.monotonic() - started < _BOUND_SECONDS
    own_s3.thaw()
    place = storage(own_s3, bucket)
    assert place.files() == []
    write(freeze=False)
    assert place.size("shard") == 5 * PART + 1


def test_a_server_that_comes_back_is_waited_for(own_s3: S3Server) -> None:
    """Killed in the middle of an upload and of a read, and started half a second later."""
    place = storage(own_s3, own_s3.new_bucket())
    data = content(3 * PART + 5)
    with place.create("shard") as stream:
        stream.write(data[: PART + 1])
        _kill_for_a_moment(own_s3)
        stream.write(data[PART + 1 :])
    with place.open("shard") as file:
        assert file.read(MIB) == data[:MIB]
        _kill_for_a_moment(own_s3)
        assert file.read() == data[MIB:]


def _kill_for_a_moment(server: S3Server) -> None:
    server.kill()
    threading.Timer(0.5, server.start).start()


@pytest.mark.parametrize(
    ("actions", "call", "said"),
    [
        ((), lambda s: s.read("there"), "cannot read: .*Forbidden"),
        (("s3:GetObject", "s3:ListBucket"), lambda s: s.write("a", b""), "write: AccessDenied"),
        (("s3:GetObject", "s3:ListBucket"), lambda s: s.remove("there"), "remove: AccessDenied"),
    ],
)
def test_what_is_refused_is_not_asked_for_again(
    s3: S3Server, actions: tuple[str, ...], call: Callable[[Storage], object], said: str
) -> None:
    """And not taken for a file that is not there."""
    bucket = s3.new_bucket()
    storage(s3, bucket).write("there", b"1")
    place = storage(s3, bucket, keys=s3.new_user(bucket, *actions))
    started = time.monotonic()
    with pytest.raises(StorageError, match=said):
        call(place)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.read("x"),
        lambda s: s.exists("x"),
        lambda s: s.files(),
        lambda s: s.folders(),
        lambda s: s.write("x", b""),
        lambda s: s.remove("x"),
    ],
)
def test_a_missing_bucket_is_neither_empty_nor_made(
    s3: S3Server, call: Callable[[Storage], object]
) -> None:
    """A run must not begin afresh because its bucket's name has a slip in it."""
    place = storage(s3, "no-such-bucket")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        call(place)
    assert "no-such-bucket" not in {b["Name"] for b in s3.client().list_buckets()["Buckets"]}
