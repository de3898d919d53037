"""What is S3's own about storage there: parts that somebody pays for, ETags, permissions. What
holds for every bucket is in `test_bucket_storage`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from s3_proxy import Exchange, S3Proxy, nothing
from s3_server import Keys, S3Server

from daybreak_trainer.checkpoint.storage import Storage, StorageError

PART = S3Server.part_bytes
MIB = 1 << 20


def content(size: int) -> bytes:
    return bytes(number % 251 for number in range(256)) * (size // 256) + bytes(size % 256)


def storage(server: S3Server, bucket: str, keys: Keys | None = None, **options: Any) -> Storage:
    given = server.options(keys) | server.small_parts() | options
    place = Storage(f"s3://{bucket}/folder", given)
    place.fs.connect()  # reads botocore's models: no part of what is measured
    return place


def through(
    server: S3Server, before: Callable[[Exchange], None], after: Callable[[Exchange], None]
) -> tuple[S3Proxy, Storage, str]:
    """A proxy in front of the server, and a storage that speaks to it."""
    bucket = server.new_bucket()
    proxy = S3Proxy(server.url, before, after)
    return proxy, storage(server, bucket, endpoint_url=proxy.url), bucket


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


def test_a_server_that_comes_back_is_waited_for(own_s3: S3Server) -> None:
    """Killed in the middle of an upload and of a read, and started half a second later."""
    place = storage(own_s3, own_s3.new_bucket())
    data = content(3 * PART + 5)
    with place.create("shard") as stream:
        stream.write(data[: PART + 1])
        with _killed_for_a_moment(own_s3):
            stream.write(data[PART + 1 :])
    with place.open("shard") as file:
        assert file.read(MIB) == data[:MIB]
        with _killed_for_a_moment(own_s3):
            assert file.read() == data[MIB:]


@contextmanager
def _killed_for_a_moment(server: S3Server) -> Iterator[None]:
    """What is done meanwhile has to wait for the server."""
    server.kill()
    later = threading.Timer(0.5, server.start)
    later.start()
    try:
        yield
    finally:
        later.join()


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
    assert time.monotonic() - started < 60, "as long as something that passes is asked for again"
