"""What Cloud Storage refuses in its own words is said at the start in those of the TrainingRun's
fields. What holds for every bucket is in `test_probe`."""

from __future__ import annotations

import threading
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from google_server import GoogleServer, refuse
from google_tokens import TokenServer
from s3_proxy import Exchange, S3Proxy

from daybreak_trainer.stores.advice import field_of
from daybreak_trainer.stores.errors import StorageError, StorageRefusedError
from daybreak_trainer.stores.patience import Patience
from daybreak_trainer.stores.probe import Place, probe

SHORT = Patience(total_seconds=1.0)
"""For a store that answers at once, on a machine that does not."""


def place(url: str, options: dict[str, Any], folder: Path) -> Place:
    (folder / "checkpoint").mkdir(exist_ok=True)
    return Place(url, field_of("checkpoint", folder), options, writable=True)


@pytest.mark.parametrize(
    ("status", "reason", "advice"),
    [
        (401, "required", "check the keys of the Secret of spec.checkpoint.secretRef"),
        (403, "forbidden", "its user must be allowed to do that"),
        (400, "invalid", "check spec.checkpoint.storage and the keys"),
    ],
)
def test_every_refusal_has_its_advice(
    gs: GoogleServer, tmp_path: Path, status: int, reason: str, advice: str
) -> None:
    """And is final: it is not asked for again."""

    def answer(exchange: Exchange) -> None:
        refuse(exchange, status, reason, "x does not")

    with S3Proxy(gs.url, answer) as proxy:
        options = gs.options() | {"endpoint_url": proxy.url}
        with pytest.raises(
            StorageRefusedError, match=f"^spec.checkpoint: .*: {reason}: x does not; {advice}"
        ):
            probe([place("gs://bucket/x", options, tmp_path)])
        assert len(proxy.seen) == 1


def test_a_key_that_is_no_longer_valid_is_refused(gs: GoogleServer, tmp_path: Path) -> None:
    """With what Google says about it."""
    with TokenServer() as tokens:
        tokens.refuses = True
        options = {"token": tokens.key_file(), "endpoint_url": gs.url}
        with pytest.raises(
            StorageRefusedError, match=r"invalid_grant.*Invalid JWT Signature.*; check the keys"
        ):
            probe([place("gs://bucket/x", options, tmp_path)])


def test_no_identity_at_all_is_said(
    gs: GoogleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a Secret nor one of the pod's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    asked = Place("gs://bucket/x", field_of("export", tmp_path), {"endpoint_url": gs.url}, True)
    with pytest.raises(
        StorageRefusedError,
        match=r"credentials were not found.*; check spec.export.secretRef, which names no Secret "
        r"\(its keys would be token and endpoint_url\)",
    ):
        probe([asked])


def test_a_handshake_that_breaks_off_says_nothing_of_certificates(tmp_path: Path) -> None:
    """As where a proxy or load balancer goes away: another attempt may do better."""

    class HangsUp(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)

    with ThreadingTCPServer(("127.0.0.1", 0), HangsUp) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = server.server_address[1]
        options = {"token": "anon", "endpoint_url": f"https://127.0.0.1:{port}"}
        with pytest.raises(StorageError, match="check endpoint_url") as caught:
            probe([place("gs://bucket/x", options, tmp_path)], SHORT)
        server.shutdown()
    assert not isinstance(caught.value, StorageRefusedError)
