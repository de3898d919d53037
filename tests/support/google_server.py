"""A real server of Cloud Storage's JSON API on loopback: fake-gcs-server.

It lets everybody do everything, and knows no status of an upload that is under way; what it cannot
show is put before it with a proxy.
"""

import json
import re
import urllib.request

from bucket_server import BucketServer, Json
from fake_gcs import FAKE_GCS
from s3_proxy import Exchange, Hook


class GoogleServer(BucketServer):
    """fake-gcs-server, in memory: what it held is gone after `kill`."""

    program, scheme = FAKE_GCS, "gs"
    part_bytes = 1 << 18
    write_operation = "POST"

    def _arguments(self) -> list[str]:
        return [
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)),
            *("-backend", "memory", "-log-level", "error"),
        ]

    def options(self) -> Json:
        return {"token": "anon", "endpoint_url": self.url}

    def secret(self) -> dict[str, str]:
        return self.options()

    def small_parts(self) -> Json:
        return {"block_size": self.part_bytes}

    def _make(self, bucket: str) -> None:
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests",
            json.dumps({"name": bucket}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    # --- how it speaks --------------------------------------------------------------------------

    def throttle(self, exchange: Exchange) -> None:
        refuse(exchange, (429, 403)[exchange.number % 2], "rateLimitExceeded", "slow down")

    def fail(self, exchange: Exchange) -> None:
        refuse(exchange, 503, "backendError", "later")

    def reads(self, exchange: Exchange) -> bool:
        return "alt=media" in exchange.path

    def ends_upload(self, exchange: Exchange) -> bool:
        return exchange.method == "PUT" and not exchange.asked["Content-Range"].endswith("*")

    def stand_in(self) -> tuple[Hook, Hook]:
        status = UploadStatus()
        return status.before, status.after


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
