"""Fetches the official releases of Kubernetes and etcd and verifies their checksums.

Both projects publish SHA-256 sums beside their files. A file whose sum differs is never kept.
The first request is for a sum of some bytes with a short time limit, so a machine without a way
out is told apart within seconds.
"""

import hashlib
import http.client
import platform
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from daybreak_devcluster.release import PROGRAMS, Release
from daybreak_devcluster.steps import Report, StepError

_KUBERNETES = "https://dl.k8s.io"
_ETCD = "https://github.com/etcd-io/etcd/releases/download"
_TIMEOUT_SECONDS = 5.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def download_release(
    directory: Path,
    release: Release,
    report: Report,
    *,
    kubernetes_url: str = _KUBERNETES,
    etcd_url: str = _ETCD,
) -> None:
    """Fill `directory` with the released programs for this machine's architecture.

    Raises `StepError` where a file cannot be fetched or does not match its checksum.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise StepError(f"no releases are published for the architecture {machine}")
    architecture = _ARCHITECTURES[machine]
    base = f"{kubernetes_url}/{release.kubernetes}/bin/linux/{architecture}"
    for program in PROGRAMS:
        if program == "etcd":
            continue
        url = f"{base}/{program}"
        checksum = _read(f"{url}.sha256").decode().split()[0]
        _fetch(url, directory / program, checksum, report)
    _download_etcd(directory, f"{etcd_url}/{release.etcd}", release.etcd, architecture, report)
    for program in PROGRAMS:
        (directory / program).chmod(0o755)


def _download_etcd(
    directory: Path, base: str, version: str, architecture: str, report: Report
) -> None:
    stem = f"etcd-{version}-linux-{architecture}"
    lines = [line.split() for line in _read(f"{base}/SHA256SUMS").decode().splitlines()]
    sums = {fields[1]: fields[0] for fields in lines if len(fields) == 2}
    archive = directory / f"{stem}.tar.gz"
    if archive.name not in sums:
        raise StepError(f"{base}/SHA256SUMS does not name {archive.name}")
    _fetch(f"{base}/{archive.name}", archive, sums[archive.name], report)
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"{stem}/etcd")
        if member is None:
            raise StepError(f"{archive.name} holds no file {stem}/etcd")
        (directory / "etcd").write_bytes(member.read())
    archive.unlink()


def _fetch(url: str, path: Path, checksum: str, report: Report) -> None:
    report(f"downloading {url}")
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            path.open("wb") as out,
        ):
            while chunk := response.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise StepError(f"cannot fetch {url}: {_reason(error)}") from error
    if digest.hexdigest() != checksum:
        path.unlink()
        raise StepError(f"{url} has the SHA-256 {digest.hexdigest()}, published is {checksum}")


def _read(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content: bytes = response.read(1 << 20)
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise StepError(f"cannot fetch {url}: {_reason(error)}") from error
    return content


def _reason(error: Exception) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)
