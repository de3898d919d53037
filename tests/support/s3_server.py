"""A real S3 server on loopback, which a test may freeze, kill and bring back.

`s3` is shared by the whole test session and stays well; `own_s3` is a test's own, to be hurt.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import boto3
import pytest
from versitygw import VERSITYGW

_READY_SECONDS = 20.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Keys:
    """One user's credentials."""

    key: str
    secret: str


class S3Server:
    """versitygw over a folder; runs while the `with` block does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("data", "users"):
            (folder / name).mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.root = Keys("root-key", secrets.token_hex(8))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts it on its port, also after `kill`; what it held is there."""
        environment = {
            "ROOT_ACCESS_KEY": self.root.key,
            "ROOT_SECRET_KEY": self.root.secret,
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(VERSITYGW.find(print)),
                    *("--port", f"127.0.0.1:{self._port}", "--quiet"),
                    *("--iam-dir", str(self._folder / "users"), "--iam-cache-disable"),
                    *("posix", str(self._folder / "data")),
                ],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                text = (self._folder / "log").read_text()
                assert self._process.poll() is None, f"versitygw ended: {text}"
                assert time.monotonic() < deadline, f"versitygw does not listen: {text}"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: connections break and new ones are refused."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is read or answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # --- its users and buckets ------------------------------------------------------------------

    def client(self, keys: Keys | None = None) -> Any:
        """A boto3 client, of root if no keys are given."""
        keys = keys or self.root
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=keys.key,
            aws_secret_access_key=keys.secret,
            region_name="us-east-1",
        )

    def options(self, keys: Keys | None = None) -> Json:
        """fsspec options, as a Secret would give them."""
        keys = keys or self.root
        return {"key": keys.key, "secret": keys.secret, "endpoint_url": self.url}

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        self.client().create_bucket(Bucket=name)
        return name

    def folder(self, bucket: str) -> Path:
        """Where the bucket's objects lie; a file that is put there is one."""
        return self._folder / "data" / bucket

    def new_user(self, bucket: str, *actions: str) -> Keys:
        """A user who may do these things with a bucket and its objects, and nothing else."""
        keys = Keys(f"user-{secrets.token_hex(4)}", secrets.token_hex(8))
        subprocess.run(
            [
                str(VERSITYGW.find(print)),
                *("admin", "-a", self.root.key, "-s", self.root.secret),
                *("--endpoint-url", self.url, "create-user"),
                *("-a", keys.key, "-s", keys.secret, "-r", "user"),
            ],
            check=True,
            capture_output=True,
        )
        if actions:
            self._allow(bucket, keys, actions)
        return keys

    def _allow(self, bucket: str, keys: Keys, actions: tuple[str, ...]) -> None:
        of_bucket = [a for a in actions if a.startswith("s3:List") and "Parts" not in a]
        of_objects = [action for action in actions if action not in of_bucket]
        resource = f"arn:aws:s3:::{bucket}"
        statements = [
            {"Effect": "Allow", "Principal": {"AWS": [keys.key]}, "Action": which, "Resource": arn}
            for which, arn in ((of_bucket, resource), (of_objects, f"{resource}/*"))
            if which
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.client().put_bucket_policy(Bucket=bucket, Policy=policy)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the server, where it has to be, before any test's time limit runs."""
    asks = any({"s3", "own_s3"} & set(getattr(i, "fixturenames", ())) for i in session.items)
    if asks and not session.config.option.collectonly:
        VERSITYGW.find(session.config.get_terminal_writer().line)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests; each makes buckets of its own."""
    with S3Server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server for one test alone."""
    with S3Server(tmp_path / "s3-server") as server:
        yield server
