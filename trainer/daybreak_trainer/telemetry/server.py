"""A worker's HTTP face: `/healthz`, `/progress`, `/metrics`, on the pod's own IP.

It runs in the launcher's own thread, so it answers while the ranks are busy or dead. "Healthy"
means the process is up, never that training progresses: a probe must not kill a slow start.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from daybreak_trainer.contract import Progress
from daybreak_trainer.telemetry.metrics import exposition


class WorkerServer:
    """Serves until the process ends."""

    def __init__(self, address: str, port: int, progress: Callable[[], Progress]) -> None:
        self._progress = progress
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer((address, port), handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of a GET."""
        if path == "/healthz":
            return HTTPStatus.OK, "text/plain", b"ok\n"
        if path == "/progress":
            return HTTPStatus.OK, "application/json", self._progress().to_json().encode()
        if path == "/metrics":
            return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", exposition()
        return HTTPStatus.NOT_FOUND, "text/plain", b"/healthz, /progress or /metrics\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: WorkerServer

    def do_GET(self) -> None:
        status, content_type, body = self.owner.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        """Probes and scrapes every few seconds are no news."""
