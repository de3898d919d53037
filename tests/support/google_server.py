"""A real server of Cloud Storage's JSON API on loopback, and one that gives access tokens.

fake-gcs-server lets everybody do everything, and knows no status of an upload that is under way;
what it cannot show is put before it with a `S3Proxy`.

`python tests/support/google_server.py` fills the user's cache and prints the path.
"""

import json
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from go_program import GoProgram
from google.oauth2 import service_account

from daybreak_devcluster.steps import StepError

FAKE_GCS = GoProgram(
    name="fake-gcs-server",
    package="github.com/fsouza/fake-gcs-server",
    version="v1.56.1",
    oldest_go=(1, 26),
    what="the Cloud Storage of the tests",
)
_READY_SECONDS = 20.0
Json = dict[str, Any]


class GoogleServer:
    """fake-gcs-server, in memory; runs while the `with` block does."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(FAKE_GCS.find(print)), "-scheme", "http", "-host", "127.0.0.1"),
                    *("-port", str(self._port), "-backend", "memory", "-log-level", "error"),
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return self
            except OSError:
                text = self._log.read_text()
                assert self._process.poll() is None, f"fake-gcs-server ended: {text}"
                assert time.monotonic() < deadline, f"fake-gcs-server does not listen: {text}"
                time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is read or answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def options(self) -> Json:
        """fsspec options, as a Secret would give them."""
        return {"token": "anon", "endpoint_url": self.url}

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()
        return name


class TokenServer:
    """Google's token endpoint, for one service account; runs while the `with` block does."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self.refuses = False
        self.lasts_seconds = 3600
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                server.asked += 1
                good = {"access_token": server.token, "expires_in": server.lasts_seconds}
                bad = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
                body = json.dumps(bad if server.refuses else good).encode()
                self.send_response(400 if server.refuses else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def key_file(self) -> str:
        """The content of a service account's key file, as the console of Google Cloud gives it."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "tests",
                "private_key_id": "1",
                "private_key": pem.decode(),
                "client_email": "trainer@tests.iam.gserviceaccount.com",
                "token_uri": f"http://127.0.0.1:{self._server.server_port}/token",
            }
        )

    def __enter__(self) -> Self:
        # Beside the token, google-auth asks a fixed host where it may be used.
        required = "_is_regional_access_boundary_lookup_required"
        self._patch = patch.object(service_account.Credentials, required, lambda _: False)
        self._patch.start()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()
        self._server.shutdown()
        self._server.server_close()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the server, where it has to be, before any test's time limit runs."""
    asks = any({"gs", "own_gs"} & set(getattr(i, "fixturenames", ())) for i in session.items)
    if asks and not session.config.option.collectonly:
        FAKE_GCS.find(session.config.get_terminal_writer().line)


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    """One server for all tests; each makes buckets of its own."""
    with GoogleServer(tmp_path_factory.mktemp("gs") / "log") as server:
        yield server


@pytest.fixture
def own_gs(tmp_path: Path) -> Iterator[GoogleServer]:
    """A server for one test alone."""
    with GoogleServer(tmp_path / "gs-log") as server:
        yield server


if __name__ == "__main__":
    try:
        print(FAKE_GCS.find(lambda line: print(line, file=sys.stderr, flush=True)))
    except StepError as error:
        sys.exit(f"error: {error}")
