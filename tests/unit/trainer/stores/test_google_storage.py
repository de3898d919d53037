"""What is Cloud Storage's own about storage there: uploads that go on where they broke off, tokens,
compression. What holds for every bucket is in `test_bucket_storage`."""

from __future__ import annotations

import gc
import gzip
import json
import re
from typing import Any

import pytest
from google_server import GoogleServer, UploadStatus
from google_tokens import TokenServer
from s3_proxy import CutError, Exchange, Hook, S3Proxy, nothing

from daybreak_trainer.checkpoint.storage import Storage, StorageError, StorageRefusedError
from daybreak_trainer.stores.errors import is_passing
from daybreak_trainer.stores.patience import Patience

PART = GoogleServer.part_bytes


def content(size: int) -> bytes:
    return bytes(number % 251 for number in range(1 << 12)) * (size >> 12) + bytes(size % (1 << 12))


def storage(server: GoogleServer, bucket: str, **options: Any) -> Storage:
    given = server.options() | server.small_parts() | options
    return Storage(f"gs://{bucket}/folder", given)


def test_nothing_is_read_past_the_end(gs: GoogleServer) -> None:
    """The API refuses such a range, and refuses every range of an empty file."""
    place = storage(gs, gs.new_bucket())
    place.write("shard", b"weights")
    place.write("empty", b"")
    assert place.read_range("shard", 7, 12) == place.read_range("empty", 0, 5) == b""


def test_an_upload_that_is_dropped_is_not_visible(gs: GoogleServer) -> None:
    """Neither given up nor closed, as where a process falls over: its destructor sends nothing."""
    place = storage(gs, gs.new_bucket())
    for size in (PART // 2, 3 * PART + 1):
        place.fs.open(place.path("shard"), "wb").write(content(size))
        gc.collect()
    assert place.files() == []


def test_more_files_than_are_listed_at_a_time(gs: GoogleServer) -> None:
    """Listings are complete past the first page, and so is a removal."""

    def short(exchange: Exchange) -> None:
        exchange.path = exchange.path.replace("/o?", "/o?maxResults=3&", 1)

    with S3Proxy(gs.url, short) as proxy:
        place = storage(gs, gs.new_bucket(), endpoint_url=proxy.url)
        names = [f"step/{number:02d}" for number in range(10)]
        for name in names:
            place.write(name, b"x")
        assert place.files() == names
        assert len([request for request in proxy.seen if "pageToken" in request]) == 3
        place.remove("step")
        assert place.files() == []


def test_a_folder_of_its_own_goes_too(gs: GoogleServer) -> None:
    """Consoles make an object `step/` for a folder; a file `step` beside it is another one."""
    bucket = gs.new_bucket()
    place = storage(gs, bucket)
    uploads = f"{gs.url}/upload/storage/v1/b/{bucket}/o"
    params = {"uploadType": "media", "name": "folder/step/"}
    place.fs.session.call("POST", uploads, params, b"")
    place.write("step", b"1")
    place.write("step/one", b"2")
    place.remove("step")
    assert place.folders() == []
    assert place.files() == ["step"]


def through(gs: GoogleServer, before: Hook, after: Hook = nothing) -> tuple[S3Proxy, Storage]:
    proxy = S3Proxy(gs.url, before, after)
    return proxy, storage(gs, gs.new_bucket(), endpoint_url=proxy.url)


def test_an_upload_goes_on_from_where_it_broke_off(
    gs: GoogleServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is asked how far it came. The log tells of it, without the address of the upload,
    which anyone could write to."""
    status, cut = UploadStatus(), []

    def lose(exchange: Exchange) -> None:
        status.after(exchange)
        if exchange.status == 308 and len(cut) < 2:
            cut.append(exchange.path)
            raise CutError

    proxy, place = through(gs, status.before, lose)
    with proxy:
        record = place.write("shard", content(6 * PART + 9))
        assert place.record("shard") == record
    assert status.asked
    logged = [vars(record) for record in caplog.records]
    assert any(f"{place.url}/shard" in str(entry) for entry in logged)
    assert "upload_id" in str(proxy.seen)
    assert "upload_id" not in str(logged)


def test_half_a_part_is_gone_on_from(gs: GoogleServer) -> None:
    """The store may keep less of a part than it was sent, and says so."""
    status, halves = UploadStatus(), 0

    def halve(exchange: Exchange) -> None:
        nonlocal halves
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(.*)", exchange.asked.get("Content-Range", ""))
        if span is not None and len(exchange.body) > PART:
            halves += 1
            exchange.body = exchange.body[:PART]
            exchange.asked["Content-Length"] = str(PART)
            exchange.asked["Content-Range"] = f"bytes {span[1]}-{int(span[1]) + PART - 1}/*"

    proxy, place = through(gs, halve, status.after)
    with proxy:
        record = place.write("shard", content(5 * PART))
        assert place.record("shard") == record
    assert halves == 4


def test_a_store_that_has_something_else_is_found_out(gs: GoogleServer) -> None:
    """As many bytes, but others: the checksum tells, and the content is looked at."""

    def flip(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b"weights", b"weighTs")

    proxy, place = through(gs, flip)
    with proxy, pytest.raises(StorageError, match=r"folder/shard: .* has other bytes \(xxh64"):
        place.write("shard", b"weights")


def test_answers_may_be_compressed_and_objects_too(gs: GoogleServer) -> None:
    """What the API says is unpacked; an object that was stored compressed is read as it is."""
    packed = gzip.compress(b"weights")

    def pack(exchange: Exchange) -> None:
        assert "gzip" in exchange.asked["Accept-Encoding"]
        is_json = "json" in exchange.headers.get("Content-Type", "")
        if is_json or "alt=media" in exchange.path:
            exchange.headers["Content-Encoding"] = "gzip"
        if is_json:
            exchange.content = gzip.compress(exchange.content)

    proxy, place = through(gs, nothing, pack)
    with proxy:
        record = place.write("a/shard", packed)
        assert place.read("a/shard") == packed
        assert place.record("a/shard") == record
        assert place.files() == ["a/shard"]
        assert not place.exists("b")


def test_a_service_account_signs_its_requests(gs: GoogleServer) -> None:
    """With the access token that its key is exchanged for, once for many requests."""
    seen = []

    def look(exchange: Exchange) -> None:
        seen.append(
            (exchange.asked.get("authorization"), exchange.asked.get("x-goog-user-project"))
        )

    with TokenServer() as tokens, S3Proxy(gs.url, look) as proxy:
        options = {"key.json": tokens.key_file(), "endpoint_url": proxy.url}
        place = Storage(f"gs://{gs.new_bucket()}/x", options | {"requester_pays": "payer"})
        place.write("a", b"1")
        assert place.read("a") == b"1"
        assert set(seen) == {(f"Bearer {tokens.token}", "payer")}
        assert tokens.asked == 1


def test_a_token_that_cannot_be_renewed_now_may_be_later(gs: GoogleServer) -> None:
    """The keys gave one an hour ago, so they are right."""
    with TokenServer() as tokens:
        tokens.lasts_seconds = 1
        options = {"token": tokens.key_file(), "endpoint_url": gs.url}
        place = Storage(f"gs://{gs.new_bucket()}/x", options, Patience(total_seconds=1.0))
        place.write("a", b"1")
        tokens.refuses = True
        with pytest.raises(StorageError, match="no access token: invalid_grant") as caught:
            place.read("a")
        assert is_passing(caught.value.__cause__)
        tokens.refuses = False
        assert place.read("a") == b"1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"private_key": "hidden"}, "no working service_account key"),
        ({"type": "gdch"}, "the type of its token is 'gdch', not one of authorized_user, ext"),
    ],
)
def test_a_key_file_that_is_none_is_refused(change: dict[str, str], said: str) -> None:
    """Before anything is asked, and without a word of the key."""
    key = json.dumps({"type": "service_account", "client_email": "x", "token_uri": "y"} | change)
    with pytest.raises(StorageRefusedError, match=said) as caught:
        Storage("gs://bucket/x", {"token": key})
    assert "hidden" not in str(caught.value)
