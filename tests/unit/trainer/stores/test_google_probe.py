"""At the start, whatever is wrong with a bucket of Cloud Storage is said in the words of the
TrainingRun's fields, and as final only where another attempt would meet the same."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from google_server import GoogleServer, TokenServer
from s3_proxy import Exchange, S3Proxy

from daybreak_trainer.stores.advice import field_of
from daybreak_trainer.stores.errors import StorageError, StorageRefusedError
from daybreak_trainer.stores.patience import Patience
from daybreak_trainer.stores.probe import Place, probe

SHORT = Patience(total_seconds=1.0)
"""For a store that answers at once, on a machine that does not."""


def place(url: str, options: dict[str, Any], folder: Path, role: str = "checkpoint") -> Place:
    (folder / role).mkdir(exist_ok=True)
    return Place(url, field_of(role, folder), options, writable=role != "data-0")


def test_a_bucket_that_works_is_not_kept_up(gs: GoogleServer, tmp_path: Path) -> None:
    """Nothing is left behind in it, and a dataset that is not there is somebody else's to say."""
    bucket = gs.new_bucket()
    with S3Proxy(gs.url) as proxy:
        options = gs.options() | {"endpoint_url": proxy.url}
        roles = ("checkpoint", "export", "data-0")
        probe([place(f"gs://{bucket}/{role}", options, tmp_path, role) for role in roles])
        assert len([request for request in proxy.seen if request.startswith("DELETE")]) == 2


@pytest.mark.parametrize(
    ("role", "where"),
    [("checkpoint", "spec.checkpoint.storage"), ("data-0", r"spec.data.streams\[0\].url")],
)
def test_a_missing_bucket_is_refused(
    gs: GoogleServer, tmp_path: Path, role: str, where: str
) -> None:
    """And not made."""
    with pytest.raises(
        StorageRefusedError, match=f"gs://no-such/x: NoSuchBucket: .*; create the bucket.*{where}$"
    ):
        probe([place("gs://no-such/x", gs.options(), tmp_path, role)])


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

    def refuse(exchange: Exchange) -> None:
        exchange.status, exchange.headers = status, {"Content-Type": "application/json"}
        error = {"code": status, "message": "x does not", "errors": [{"reason": reason}]}
        exchange.content = json.dumps({"error": error}).encode()

    with S3Proxy(gs.url, refuse) as proxy:
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


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://no-such-store.invalid", "Name or service not known|resolve"),
    ],
)
def test_an_endpoint_that_is_not_there_may_come(tmp_path: Path, endpoint: str, said: str) -> None:
    """No final error: a network may be down for now."""
    options = {"token": "anon", "endpoint_url": endpoint}
    with pytest.raises(StorageError, match=f"({said}).*; check endpoint_url in the keys") as caught:
        probe([place("gs://bucket/x", options, tmp_path)], SHORT)
    assert not isinstance(caught.value, StorageRefusedError)


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


@pytest.mark.e2e
def test_a_store_that_never_answers_is_given_up_in_time(
    own_gs: GoogleServer, tmp_path: Path
) -> None:
    """As patient as a real run is: with the store's words, before the probe's own limit."""
    asked = place(f"gs://{own_gs.new_bucket()}/x", own_gs.options(), tmp_path)
    own_gs.freeze()
    with pytest.raises(StorageError, match="no answer to POST within") as caught:
        probe([asked])
    assert not isinstance(caught.value, StorageRefusedError)
