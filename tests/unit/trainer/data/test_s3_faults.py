"""Shards of several parts from a real S3 server that is slow, throttles, breaks or falls silent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mds_folders import name_of, write_latents
from s3_proxy import CutError, Exchange, Hook, S3Proxy, nothing
from s3_server import Keys, S3Server

from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError, DataUnavailableError
from daybreak_trainer.data.retry import RetryPolicy

MakeReader = Callable[..., Any]
MIB = 1 << 20
SAMPLES, SHARD_BYTES = 14, 14 * MIB
PATIENT = RetryPolicy(
    total_seconds=60, stall_seconds=60, first_wait_seconds=0.05, longest_wait_seconds=0.2
)
"""Repeats soon, and gives nothing up that a machine which stands still for a while delays."""
SOON_OVER = replace(PATIENT, total_seconds=3.0)
HASTY = replace(PATIENT, stall_seconds=1.5)
SMALL_BLOCKS = {"default_block_size": 5 * MIB}
"""So that a shard has several of what s3fs would read at a time."""


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    """One shard of 14 MiB."""
    name = s3.new_bucket()
    _fill(s3, name)
    return name


def _fill(server: S3Server, bucket: str) -> None:
    folder = server.folder(bucket) / "set"
    folder.mkdir()
    write_latents(folder, [SAMPLES], id_letters=MIB)


def stream(server: S3Server, bucket: str, url: str | None = None) -> Stream:
    options = server.options() | SMALL_BLOCKS | {"endpoint_url": url or server.url}
    return Stream(f"s3://{bucket}/set", options)


def is_part(exchange: Exchange) -> bool:
    """Whether this is asked of the shard."""
    return exchange.method == "GET" and ".mds" in exchange.path


def numbers(reader: Any) -> list[int]:
    (batch,) = reader.batches([SAMPLES])
    assert list(batch.captions) == [f"number {index}" for index in batch.indices]
    return sorted(batch.indices.tolist())


def through(
    reader: MakeReader,
    s3: S3Server,
    bucket: str,
    before: Hook,
    after: Hook = nothing,
    policy: RetryPolicy = PATIENT,
) -> tuple[list[int], Any, int]:
    """An epoch through a proxy: its samples, the reader, and how many bytes of the shard went."""
    sent = [0]

    def count(exchange: Exchange) -> None:
        after(exchange)
        if is_part(exchange):
            sent[0] += len(exchange.content[: exchange.cut_after])

    with S3Proxy(s3.url, before, count) as proxy:
        one = reader(stream(s3, bucket, proxy.url), policy=policy)
        return numbers(one), one, sent[0]


def test_a_slow_store_is_not_a_dead_one(reader: MakeReader, s3: S3Server, bucket: str) -> None:
    """A shard that takes longer than an attempt may arrives: it comes part by part."""

    def slowly(exchange: Exchange) -> None:
        if is_part(exchange):
            exchange.bytes_per_second = 4 * MIB

    started = time.monotonic()
    found, _, _ = through(reader, s3, bucket, nothing, slowly, HASTY)
    assert found == list(range(SAMPLES))
    assert time.monotonic() - started > 2 * HASTY.stall_seconds


def test_what_has_arrived_is_not_fetched_again(
    reader: MakeReader, s3: S3Server, bucket: str
) -> None:
    """The connection breaks near the end, in the middle of a part: only that part comes again."""
    parts: list[int] = []
    broken = [0]

    def breaks(exchange: Exchange) -> None:
        if is_part(exchange):
            parts.append(exchange.number)
            if len(parts) == 2:
                broken[0] = exchange.cut_after = len(exchange.content) - 10

    found, one, sent = through(reader, s3, bucket, nothing, breaks)
    assert found == list(range(SAMPLES))
    assert broken[0] > MIB
    assert one.counts.retries == 1
    assert sent < SHARD_BYTES + broken[0] + MIB


def test_every_other_request_fails(reader: MakeReader, s3: S3Server, bucket: str) -> None:
    """Throttled, broken and failing in turn, the index too."""

    def fails(exchange: Exchange) -> None:
        if exchange.number % 6 == 0:
            exchange.answer(503, "SlowDown")
        elif exchange.number % 6 == 2:
            raise CutError
        elif exchange.number % 6 == 4:
            exchange.answer(500, "InternalError")

    found, one, _ = through(reader, s3, bucket, fails)
    assert found == list(range(SAMPLES))
    assert one.counts.retries >= 4


def test_a_store_that_throttles_for_good_is_heard(
    reader: MakeReader, s3: S3Server, bucket: str
) -> None:
    """Its own word reaches the operator, in the time that it was given."""

    def throttles(exchange: Exchange) -> None:
        if is_part(exchange):
            exchange.answer(503, "SlowDown")

    started = time.monotonic()
    with pytest.raises(DataUnavailableError, match=rf"{name_of(0)}: SlowDown.*did not recover"):
        through(reader, s3, bucket, throttles, policy=SOON_OVER)
    assert time.monotonic() - started < 60


def test_a_store_that_throttles_while_a_dataset_is_opened(
    reader: MakeReader, s3: S3Server, bucket: str
) -> None:
    """Its word is said then too, and that another attempt may go well."""

    def throttles(exchange: Exchange) -> None:
        exchange.answer(503, "SlowDown")

    with pytest.raises(DataUnavailableError, match=r"s3://.*/set: cannot be opened: SlowDown"):
        through(reader, s3, bucket, throttles, policy=SOON_OVER)


def test_what_a_store_refuses_is_not_asked_again(
    reader: MakeReader, s3: S3Server, bucket: str
) -> None:
    """An answer that means no."""
    asked = []

    def refuses(exchange: Exchange) -> None:
        if is_part(exchange):
            asked.append(exchange.path)
            exchange.answer(400, "InvalidArgument")

    with pytest.raises(DataUnavailableError, match=rf"{name_of(0)}: InvalidArgument.*refuses it"):
        through(reader, s3, bucket, refuses)
    assert len(asked) == 1


def test_a_server_that_is_gone_is_named(
    reader: MakeReader, own_s3: S3Server, tmp_path: Path
) -> None:
    """What keeps it from answering too, and not only that nothing came."""
    name = own_s3.new_bucket()
    _fill(own_s3, name)
    one = reader(stream(own_s3, name), policy=SOON_OVER)
    _, shards = one.shards()
    own_s3.kill()
    with pytest.raises(DataUnavailableError, match=rf"{name_of(0)}: .*[Cc]onnect"):
        shards.get(0)
    shards.close()


def test_a_server_that_falls_silent_is_waited_for(reader: MakeReader, own_s3: S3Server) -> None:
    """Connections stay and nothing comes: the shard arrives when it speaks again."""
    name = own_s3.new_bucket()
    _fill(own_s3, name)
    _, shards = reader(stream(own_s3, name), policy=replace(HASTY, stall_seconds=1.0)).shards()
    own_s3.freeze()
    threading.Timer(2.5, own_s3.thaw).start()
    assert shards.get(0).text(3, "caption") == "number 3"
    shards.close()


def test_a_server_that_stays_silent_is_named(reader: MakeReader, own_s3: S3Server) -> None:
    """With what was waited for."""
    name = own_s3.new_bucket()
    _fill(own_s3, name)
    hasty = replace(HASTY, total_seconds=3.0)
    _, shards = reader(stream(own_s3, name), policy=hasty).shards()
    own_s3.freeze()
    with pytest.raises(DataUnavailableError, match=rf"{name_of(0)}: .*[Tt]imeout.*"):
        shards.get(0)
    shards.close()


@pytest.mark.parametrize(
    ("where", "keys", "said"),
    [
        ("s3://bucket-that-is-not-there/set", None, "cannot be opened: NoSuchBucket"),
        ("s3://{bucket}/other", None, "there is no index.json"),
        ("s3://{bucket}/set", Keys("root-key", "wrong"), "cannot be opened: SignatureDoesNotMatch"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(
    reader: MakeReader, s3: S3Server, bucket: str, where: str, keys: Keys | None, said: str
) -> None:
    """A bucket that is missing is no dataset that lacks a file."""
    with pytest.raises(DatasetError, match=said):
        reader(Stream(where.format(bucket=bucket), s3.options(keys))).corpus()
