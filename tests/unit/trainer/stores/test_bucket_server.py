"""The servers of buckets that tests speak to are the tests' own."""

from __future__ import annotations

from pathlib import Path

from bucket_server import BucketServer


def test_a_port_that_another_process_took_is_not_taken_for_ones_own(
    bucket_server: BucketServer, tmp_path: Path
) -> None:
    """Even where one of the same kind answers there: the next port is tried, and kept in another
    life of the server."""
    made = type(bucket_server)(tmp_path / "made")  # type: ignore[call-arg]
    try:
        made.start(first_port=bucket_server.port)
        port = made.port
        assert port != bucket_server.port
        made.kill()
        made.start()
        assert made.port == port
        assert made.new_bucket()
    finally:
        made.kill()
