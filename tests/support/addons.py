"""What servers that run beside a development cluster's control plane have in common."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import yaml

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.crds import await_crd
from daybreak_devcluster.processes import tail

_READY_SECONDS = 120.0


def await_answer(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Returns when the URL answers with success; the process's last words where it does not."""
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=60).close()
            return
        except urllib.error.URLError:
            assert process.poll() is None, f"{name} ended:\n{tail(log, 60)}"
            assert time.monotonic() < deadline, f"{name} is not ready:\n{tail(log, 60)}"
        time.sleep(0.1)


def install_crds(cluster: Cluster, files: Sequence[Path]) -> None:
    """On the server's side: some schemas are too long for kubectl's annotation."""
    cluster.kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
    for file in files:
        await_crd(cluster, yaml.safe_load(file.read_text())["metadata"]["name"])
