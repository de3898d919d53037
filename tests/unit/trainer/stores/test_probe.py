"""At the start, whatever is wrong with a store is said in the words of the TrainingRun's fields, in
time, and as final only where another attempt would meet the same."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from bucket_server import BucketServer
from fsspec.implementations.memory import MemoryFileSystem
from run_settings import run_settings
from s3_proxy import Exchange, S3Proxy
from s3_server import S3Server

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import StreamSettings
from daybreak_trainer.recipe import resolve
from daybreak_trainer.settings import Settings
from daybreak_trainer.stores.errors import StorageError, StorageRefusedError
from daybreak_trainer.stores.patience import Patience
from daybreak_trainer.stores.probe import Place, places, probe

HASTY = Patience(connect_seconds=1.0, silence_seconds=2.0, total_seconds=1.0)
SHORT = Patience(total_seconds=1.0)
"""For a store that answers at once, on a machine that does not."""
FIELDS = {
    "checkpoint": "spec.checkpoint",
    "export": "spec.export",
    "data-0": r"spec.data.streams\[0\]",
}


class Run:
    """A pod's settings, with Secrets as they are mounted."""

    def __init__(self, folder: Path, server: BucketServer) -> None:
        self.folder, self.server = folder, server
        self.bucket = bucket = server.new_bucket()
        self.urls = {role: f"{server.scheme}://{bucket}/{role}" for role in FIELDS}
        for role in FIELDS:
            self.secret(role, **server.options())

    def secret(self, role: str, **keys: str) -> None:
        """Replaces some of a Secret's keys."""
        mounted = self.folder / "secrets" / role
        mounted.mkdir(parents=True, exist_ok=True)
        for name, value in keys.items():
            (mounted / name).write_text(f"{value}\n")

    def places(self) -> list[Place]:
        run = run_settings(
            streams=(StreamSettings(url=self.urls["data-0"], role="data-0"),),
            checkpoint_url=self.urls["checkpoint"],
            export_url=self.urls["export"],
        )
        recipe = resolve({"preset": "smoke"})
        return places(Settings(run, 0, recipe, self.folder, self.folder / "secrets"))


@pytest.fixture
def run(tmp_path: Path, s3: S3Server) -> Run:
    return Run(tmp_path, s3)


@pytest.fixture
def any_run(tmp_path: Path, bucket_server: BucketServer) -> Run:
    """On each kind of bucket."""
    return Run(tmp_path, bucket_server)


def test_a_run_whose_stores_work_is_not_kept_up(any_run: Run) -> None:
    """Nothing is left behind in them, and a dataset that is not there is somebody else's to say."""
    probe(any_run.places())
    url = any_run.urls["export"].removesuffix("/export")
    assert Storage(url, any_run.server.options()).files() == []


@pytest.mark.parametrize("role", FIELDS)
@pytest.mark.parametrize(
    ("keys", "said", "advice"),
    [
        ({"secret": "wrong"}, "SignatureDoesNotMatch", r"check the keys of the Secret of {field}"),
        ({"key": "wrong"}, "InvalidAccessKeyId", r"mounted at \S+/secrets/{role}"),
        ({"endpoint_url": "store:9000"}, "Invalid endpoint", "check {field}"),
        ({"endpoint": "http://store"}, "unexpected keyword argument 'endpoint'", "check {field}"),
    ],
)
def test_wrong_keys_are_refused(
    run: Run, role: str, keys: dict[str, str], said: str, advice: str
) -> None:
    """Which Secret, what the store said, where to look."""
    run.secret(role, **keys)
    pattern = f"^{FIELDS[role]}: .*{said}.*; .*{advice.format(field=FIELDS[role], role=role)}"
    with pytest.raises(StorageRefusedError, match=pattern):
        probe(run.places())


@pytest.mark.parametrize("role", FIELDS)
def test_a_missing_bucket_is_refused(any_run: Run, role: str) -> None:
    """And not made."""
    any_run.urls[role] = url = f"{any_run.server.scheme}://no-such-bucket/x"
    where = FIELDS[role] + (".url" if role == "data-0" else ".storage")
    with pytest.raises(StorageRefusedError, match=f"{url}: NoSuchBucket.*; create .*{where}"):
        probe(any_run.places())


@pytest.mark.parametrize(
    ("role", "actions", "operation"),
    [
        ("data-0", (), "read"),
        ("checkpoint", ("s3:GetObject", "s3:ListBucket"), "write"),
        ("export", ("s3:GetObject", "s3:ListBucket", "s3:PutObject"), "remove"),
        ("checkpoint", ("s3:PutObject",), "write"),
    ],
)
def test_a_missing_permission_is_refused(
    run: Run, s3: S3Server, role: str, actions: tuple[str, ...], operation: str
) -> None:
    """With the operation that it is needed for."""
    user = s3.new_user(run.bucket, *actions)
    run.secret(role, key=user.key, secret=user.secret)
    with pytest.raises(
        StorageRefusedError, match=f"{FIELDS[role]}: cannot {operation} in .*must be allowed"
    ):
        probe(run.places())


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (400, "AuthorizationHeaderMalformed", "check the bucket's region: AWS_REGION in the keys"),
        (301, "PermanentRedirect", "check the bucket's region"),
        (403, "RequestTimeTooSkewed", "set the node's clock"),
        (403, "ExpiredToken", "check the keys of the Secret"),
        (403, "AccessDenied", "its user must be allowed to do that"),
        (501, "NotImplemented", "check spec.checkpoint.storage and the keys"),
    ],
)
def test_every_refusal_has_its_advice(run: Run, status: int, code: str, advice: str) -> None:
    """And is final: it is not asked for again."""

    def refuse(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            exchange.answer(status, code)

    with S3Proxy(run.server.url, refuse) as proxy:
        run.secret("checkpoint", endpoint_url=proxy.url)
        with pytest.raises(StorageRefusedError, match=f"^spec.checkpoint: .*{code}.*; {advice}"):
            probe(run.places())
    # botocore itself asks once more where it has found out another region.
    allowed = 2 if code == "PermanentRedirect" else 1
    assert len([request for request in proxy.seen if request.startswith("PUT")]) == allowed


def test_no_secret_is_said(run: Run) -> None:
    """Its name is missing from the run, and its keys are told."""
    for file in (run.folder / "secrets/export").iterdir():
        file.unlink()
    run.secret("export", endpoint_url=run.server.url)
    with pytest.raises(StorageRefusedError, match=r"NoCredentialsError.*check the keys of"):
        probe(run.places())
    for file in (run.folder / "secrets/export").iterdir():
        file.unlink()
    (run.folder / "secrets/export").rmdir()
    with pytest.raises(StorageRefusedError, match=r"spec.export.secretRef, which names no Secret"):
        probe(run.places())


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("http://127.0.0.1:1", "Connect call failed|Connection refused"),
        ("http://no-such-store.invalid", "Name or service not known|resol"),
    ],
)
def test_an_endpoint_that_is_not_there_may_come(any_run: Run, endpoint: str, said: str) -> None:
    """No final error: a network may be down for now."""
    any_run.secret("checkpoint", endpoint_url=endpoint)
    with pytest.raises(StorageError, match=f"({said}).*; check endpoint_url in the keys") as caught:
        probe(any_run.places(), SHORT)
    assert not isinstance(caught.value, StorageRefusedError)


@pytest.mark.e2e
def test_a_store_that_never_answers_is_given_up_in_time(
    tmp_path: Path, own_bucket_server: BucketServer
) -> None:
    """As patient as a real run is: within 30 s, with the store's words."""
    asked = Run(tmp_path, own_bucket_server).places()
    own_bucket_server.freeze()
    started, operation = time.monotonic(), own_bucket_server.write_operation
    with pytest.raises(StorageError, match=f"no answer to {operation} within") as caught:
        probe(asked)
    assert time.monotonic() - started < 30
    assert not isinstance(caught.value, StorageRefusedError)


def test_what_is_final_is_said_before_what_may_pass(run: Run) -> None:
    """Of several problems, the one that its user has to solve."""
    run.secret("checkpoint", endpoint_url="http://127.0.0.1:1")
    run.secret("data-0", secret="wrong")
    with pytest.raises(StorageRefusedError, match=FIELDS["data-0"]):
        probe(run.places(), HASTY)


class HangingFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """As a file server that is gone: calls do not return."""

    protocol = "hanging"
    ends = threading.Event()

    def cat_file(self, *_: Any, **__: Any) -> bytes:
        self.ends.wait()
        return b""


@pytest.fixture
def hanging() -> Iterator[None]:
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    yield
    HangingFileSystem.ends.set()


@pytest.mark.usefixtures("hanging")
def test_a_call_that_never_returns_holds_up_nobody(run: Run) -> None:
    """Where a library or the kernel gives no limit, the probe has one."""
    run.urls["data-0"] = "hanging://x"
    with pytest.raises(StorageError, match=rf"{FIELDS['data-0']}: hanging://x does not answer"):
        probe([place for place in run.places() if place.url == "hanging://x"], seconds=0.5)


PROBE = """
import sys
from pathlib import Path
from daybreak_trainer.stores.advice import field_of
from daybreak_trainer.stores.probe import Place, probe
if sys.argv[1:]:
    Path("/mnt/filler").write_bytes(bytes(4096))
try:
    probe([Place("/mnt/folder", field_of("checkpoint", Path("/secrets")), {}, True)])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("mount", "arguments", "said"),
    [
        (
            ("--ro-bind", "{folder}", "/mnt"),
            (),
            "StorageRefusedError spec.checkpoint: cannot write in /mnt/folder: Read-only file "
            "system; the volume of spec.checkpoint.persistentVolumeClaim must be one that",
        ),
        (
            ("--size", "4096", "--tmpfs", "/mnt"),
            ("full",),
            "StorageError spec.checkpoint: cannot write in /mnt/folder: No space left on device; "
            "make room on the volume of spec.checkpoint.persistentVolumeClaim",
        ),
    ],
)
def test_a_volume_that_takes_nothing_is_said(
    tmp_path: Path, mount: tuple[str, ...], arguments: tuple[str, ...], said: str
) -> None:
    """Read-only is final; a full one may have been emptied by the next attempt."""
    command = ["bwrap", "--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev"]
    command += [part.format(folder=tmp_path) for part in mount]
    done = subprocess.run(
        [*command, sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(said)
