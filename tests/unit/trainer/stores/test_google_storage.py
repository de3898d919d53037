"""Storage on Cloud Storage's JSON API: large files in parts, and what goes wrong in between is
passed over or said, in bounded time; never is half a file visible."""

from __future__ import annotations

import gc
import gzip
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from google_server import GoogleServer, TokenServer
from s3_proxy import CutError, Exchange, Hook, S3Proxy, nothing

from daybreak_trainer.checkpoint.storage import Storage, StorageError, StorageRefusedError
from daybreak_trainer.stores.errors import is_passing
from daybreak_trainer.stores.patience import Patience

PART = 1 << 18
HASTY = Patience(connect_seconds=0.5, silence_seconds=1.0, total_seconds=1.0)


def content(size: int) -> bytes:
    return bytes(number % 251 for number in range(1 << 12)) * (size >> 12) + bytes(size % (1 << 12))


def storage(
    server: GoogleServer, bucket: str, patience: Patience | None = None, **options: Any
) -> Storage:
    given = server.options() | {"block_size": PART} | options
    return Storage(f"gs://{bucket}/folder", given, patience)


def refuse(exchange: Exchange, status: int, reason: str, message: str) -> None:
    """As the JSON API does; the server sees nothing of the request."""
    exchange.status, exchange.headers = status, {"Content-Type": "application/json"}
    error = {"code": status, "message": message, "errors": [{"reason": reason}]}
    exchange.content = json.dumps({"error": error}).encode()


class UploadStatus:
    """Knows how far uploads have come, which the server does not: before it, as the API says
    (Content-Range `bytes */...`), and takes only as much of a part as it is told."""

    def __init__(self) -> None:
        self.stored = 0
        self.asked = 0

    def before(self, exchange: Exchange) -> None:
        if (span := exchange.asked.get("Content-Range")) is None:
            return
        if span.startswith("bytes */") and self.stored:
            self.asked += 1
            exchange.status, exchange.headers = 308, {"Range": f"bytes=0-{self.stored - 1}"}

    def after(self, exchange: Exchange) -> None:
        span = re.match(r"bytes \d+-(\d+)/", exchange.asked.get("Content-Range", ""))
        if span is not None and exchange.status in (200, 308):
            self.stored = int(span.group(1)) + 1


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 7])
def test_the_store_has_what_was_written(gs: GoogleServer, size: int) -> None:
    """At every edge between one request and several parts: nothing had to be read back, because
    the checksum is the one that was foretold."""
    data = content(size)
    with S3Proxy(gs.url) as proxy:
        place = storage(gs, gs.new_bucket(), endpoint_url=proxy.url)
        with place.create("a shard/ü?#%") as stream:
            for start in range(0, size, 150_000):
                stream.write(memoryview(data)[start : start + 150_000])
        assert not [request for request in proxy.seen if "alt=media" in request]
        assert place.record("a shard/ü?#%") == stream.record()
        assert place.read("a shard/ü?#%") == data
        assert place.read_range("a shard/ü?#%", size, size + 5) == b""
        assert place.read_range("a shard/ü?#%", max(0, size - 3), size + 5) == data[-3:]


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


def test_every_third_request_fails(gs: GoogleServer, caplog: pytest.LogCaptureFixture) -> None:
    """Throttled, broken and failing in turn: all of it is asked for again, and a part is sent from
    where the store has it. The log says so, without the address of an upload, which anyone could
    write to."""
    status = UploadStatus()

    def fail(exchange: Exchange) -> None:
        if exchange.number % 9 == 2:
            refuse(exchange, (429, 403)[exchange.number % 2], "rateLimitExceeded", "slow down")
        elif exchange.number % 9 == 5:
            raise CutError
        elif exchange.number % 9 == 8:
            refuse(exchange, 503, "backendError", "later")
        else:
            status.before(exchange)

    proxy, place = through(gs, fail, status.after)
    with proxy:
        record = place.write("a/one", content(6 * PART + 9))
        place.write("a/two", b"2")
        assert place.record("a/one") == record
        assert place.read("a/two") == b"2"
        assert place.files() == ["a/one", "a/two"]
        assert place.folders() == ["a"]
        place.remove("a")
        assert place.files() == []
    assert status.asked
    logged = [vars(record) for record in caplog.records]
    assert any(f"{place.url}/a/one" in str(entry) for entry in logged)
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


def test_a_lost_answer_to_a_finished_upload_is_no_failure(gs: GoogleServer) -> None:
    """The object is there, its answer never came, and the upload is not known any more."""
    cut = []

    def lose(exchange: Exchange) -> None:
        if (
            exchange.method == "PUT"
            and not exchange.asked["Content-Range"].endswith("*")
            and not cut
        ):
            cut.append(exchange.path)
            raise CutError

    proxy, place = through(gs, nothing, lose)
    with proxy:
        record = place.write("shard", content(PART + 3))
        assert cut
        assert place.record("shard") == record


def test_a_store_that_has_something_else_is_found_out(gs: GoogleServer) -> None:
    """As many bytes, but others: the checksum tells, and the content is looked at."""

    def flip(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b"weights", b"weighTs")

    proxy, place = through(gs, flip)
    with proxy, pytest.raises(StorageError, match=r"folder/shard: .* has other bytes \(xxh64"):
        place.write("shard", b"weights")


def test_an_answer_that_breaks_off_is_asked_for_again(gs: GoogleServer) -> None:
    """A short answer is not the file."""
    cut = []

    def breaks(exchange: Exchange) -> None:
        if "alt=media" in exchange.path and not cut:
            cut.append(exchange.path)
            exchange.cut_after = 5

    proxy, place = through(gs, nothing, breaks)
    with proxy:
        place.write("shard", b"0123456789")
        assert place.read("shard") == b"0123456789"
        assert cut


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


def test_a_frozen_server_is_given_up(own_gs: GoogleServer) -> None:
    """Connections stay open and nothing comes: the URL and the operation are said, in time; what
    was begun is not visible later."""
    bucket = own_gs.new_bucket()
    storage(own_gs, bucket).write("there", b"1")
    place = storage(own_gs, bucket, HASTY)
    own_gs.freeze()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("write", lambda: place.write("a", content(3 * PART))),
        ("read", lambda: place.read("there")),
        ("list", place.files),
    ]
    for operation, call in calls:
        started = time.monotonic()
        with pytest.raises(StorageError, match=f"{place.url}.*: cannot {operation}: .*no answer"):
            call()
        assert time.monotonic() - started < 10
    own_gs.thaw()
    assert storage(own_gs, bucket).files() == ["there"]


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.read("x"),
        lambda s: s.exists("x"),
        lambda s: s.files(),
        lambda s: s.folders(),
        lambda s: s.write("x", b""),
        lambda s: s.write("x", content(2 * PART)),
        lambda s: s.remove("x"),
    ],
)
def test_a_missing_bucket_is_neither_empty_nor_made(
    gs: GoogleServer, call: Callable[[Storage], object]
) -> None:
    """A run must not begin afresh because its bucket's name has a slip in it."""
    place = storage(gs, "no-such-bucket")
    for _ in range(2):
        with pytest.raises(StorageError, match="NoSuchBucket: there is no bucket no-such-bucket"):
            call(place)


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
