"""Stands between a client and the server of a bucket and misbehaves as it is told."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PIECE = 1 << 18
_OWN_HEADERS = frozenset({"connection", "content-length", "date", "server", "transfer-encoding"})
"""Of an answer: the proxy's own."""


@dataclass
class Exchange:
    """One request on its way, and its answer on the way back."""

    number: int
    """From 0."""
    method: str
    path: str
    """With the query."""
    body: bytes
    asked: dict[str, str] = field(default_factory=dict)
    """The request's headers."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    bytes_per_second: float | None = None
    """Of all answers together that have such a limit."""
    cut_after: int | None = None
    """Bytes of the content, after which the connection breaks."""

    def answer(self, status: int, code: str) -> None:
        """Answers in the server's stead; it sees nothing of this request."""
        self.status, self.headers = status, {"Content-Type": "application/xml"}
        self.content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


class CutError(Exception):
    """Raised by a hook to break the connection."""


Hook = Callable[[Exchange], None]


def nothing(_: Exchange) -> None:
    """The hook that lets everything pass."""


class S3Proxy:
    """Runs while the `with` block does. `before` may change a request's body, answer it or cut it;
    `after` may change the answer or cut it."""

    def __init__(self, upstream: str, before: Hook = nothing, after: Hook = nothing) -> None:
        address = urlsplit(upstream)
        numbers = itertools.count()
        line = threading.Lock()
        self.seen: list[str] = []
        """Methods and paths, in order."""
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                headers = dict(self.headers)
                exchange = Exchange(next(numbers), self.command, self.path, body, headers)
                seen.append(f"{self.command} {self.path}")
                try:
                    before(exchange)
                    if not exchange.status:
                        _forward(exchange, headers)
                    after(exchange)
                except CutError:
                    self.close_connection = True
                    return
                self.send_response(exchange.status)
                for name, value in exchange.headers.items():
                    if name.lower() not in _OWN_HEADERS:
                        self.send_header(name, value)
                length = int(exchange.headers.get("Content-Length", 0))
                head = exchange.method == "HEAD"
                self.send_header("Content-Length", str(length if head else len(exchange.content)))
                self.end_headers()
                if not head:
                    self._send(exchange)

            def _send(self, exchange: Exchange) -> None:
                content = exchange.content[: exchange.cut_after]
                if exchange.cut_after is not None:
                    self.close_connection = True
                if exchange.bytes_per_second is None:
                    self.wfile.write(content)
                    return
                for start in range(0, len(content), _PIECE):
                    with line:
                        time.sleep(_PIECE / exchange.bytes_per_second)
                    self.wfile.write(content[start : start + _PIECE])

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        def _forward(exchange: Exchange, headers: dict[str, str]) -> None:
            headers.pop("Expect", None)
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            connection.request(exchange.method, exchange.path, exchange.body, headers)
            answer = connection.getresponse()
            exchange.status, exchange.headers = answer.status, dict(answer.getheaders())
            exchange.content = answer.read()
            connection.close()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
