"""Servers of buckets as fixtures, a plugin of pytest.

`s3` and `gs` are shared by the whole test session and stay well; `own_s3` and `own_gs` are a test's
own, to be hurt. A test that asks for `bucket_server` or `own_bucket_server` is run with both kinds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import BucketServer
from google_server import GoogleServer
from s3_server import S3Server

KINDS: dict[str, type[BucketServer]] = {"s3": S3Server, "gs": GoogleServer}
_BOTH = {"bucket_server", "own_bucket_server"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the servers, where they have to be, before any test's time limit runs."""
    if session.config.option.collectonly:
        return
    asked = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for kind, server in KINDS.items():
        if asked & {kind, f"own_{kind}", *_BOTH}:
            server.program.find(session.config.get_terminal_writer().line)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests; each makes buckets of its own."""
    with S3Server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """One server for all tests; each makes buckets of its own."""
    with GoogleServer(tmp_path_factory.mktemp("gs") / "log") as server:
        yield server


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server for one test alone."""
    with S3Server(tmp_path / "s3-server") as server:
        yield server


@pytest.fixture
def own_gs(tmp_path: Path) -> Iterator[GoogleServer]:
    """A server for one test alone."""
    with GoogleServer(tmp_path / "gs-log") as server:
        yield server


@pytest.fixture(params=KINDS)
def bucket_server(request: pytest.FixtureRequest) -> BucketServer:
    """Each of the servers that all tests share."""
    server: BucketServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=KINDS)
def own_bucket_server(request: pytest.FixtureRequest) -> BucketServer:
    """Each of the servers, for one test alone."""
    server: BucketServer = request.getfixturevalue(f"own_{request.param}")
    return server
