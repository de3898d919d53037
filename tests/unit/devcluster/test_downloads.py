"""Release downloads: what is published is verified, and what differs is refused."""

import functools
import hashlib
import http.server
import io
import platform
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daybreak_devcluster.downloads import download_release
from daybreak_devcluster.release import PROGRAMS, Release
from daybreak_devcluster.steps import StepError

RELEASE = Release(kubernetes="v1.36.3", etcd="v3.6.8", go=(1, 26), key="v1.36.3-abc")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")


class Site:
    """A web site on loopback that is laid out as the two projects lay out theirs."""

    def __init__(self, root: Path, url: str) -> None:
        self.url = url
        self.kubernetes = root / RELEASE.kubernetes / "bin" / "linux" / ARCHITECTURE
        self.etcd = root / RELEASE.etcd
        for directory in (self.kubernetes, self.etcd):
            directory.mkdir(parents=True)
        for program in PROGRAMS:
            if program != "etcd":
                content = f"the program {program}".encode()
                (self.kubernetes / program).write_bytes(content)
                (self.kubernetes / f"{program}.sha256").write_text(
                    hashlib.sha256(content).hexdigest()
                )
        stem = f"etcd-{RELEASE.etcd}-linux-{ARCHITECTURE}"
        archive = self.etcd / f"{stem}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            member = tarfile.TarInfo(f"{stem}/etcd")
            member.size = len(b"the program etcd")
            tar.addfile(member, io.BytesIO(b"the program etcd"))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        (self.etcd / "SHA256SUMS").write_text(f"{'0' * 64}  other.zip\n{digest}  {archive.name}\n")

    def download(self, target: Path) -> None:
        download_release(
            target, RELEASE, lambda line: None, kubernetes_url=self.url, etcd_url=self.url
        )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = tmp_path / "site"
    root.mkdir()
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield Site(root, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "target"
    directory.mkdir()
    return directory


def test_a_published_release_is_fetched_whole(site: Site, target: Path) -> None:
    """All five programs arrive, executable, and nothing else stays in the directory."""
    site.download(target)
    assert sorted(path.name for path in target.iterdir()) == sorted(PROGRAMS)
    for program in PROGRAMS:
        assert (target / program).read_text() == f"the program {program}"
        assert (target / program).stat().st_mode & 0o111


def test_a_program_with_another_checksum_is_refused(site: Site, target: Path) -> None:
    """A byte that differs from what was published stops the step, and the file is not kept."""
    (site.kubernetes / "kube-scheduler").write_text("something else")
    with pytest.raises(StepError, match=r"kube-scheduler has the SHA-256 .* published is"):
        site.download(target)
    assert not (target / "kube-scheduler").exists()


def test_an_etcd_archive_with_another_checksum_is_refused(site: Site, target: Path) -> None:
    """The archive is verified before it is opened."""
    archive = next(site.etcd.glob("*.tar.gz"))
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(StepError, match=r"tar\.gz has the SHA-256"):
        site.download(target)
    assert not (target / "etcd").exists()


def test_a_missing_file_names_its_address(site: Site, target: Path) -> None:
    """A release that is not there (any more) ends in a message with the address."""
    (site.kubernetes / "kubectl").unlink()
    with pytest.raises(StepError, match=r"cannot fetch http://127.*/kubectl: "):
        site.download(target)


def test_a_server_that_does_not_answer_is_a_reason_not_a_traceback(target: Path) -> None:
    """Where nothing listens the step fails at once with the reason."""
    with pytest.raises(StepError, match="Connection refused"):
        download_release(target, RELEASE, lambda line: None, kubernetes_url="http://127.0.0.1:9")
