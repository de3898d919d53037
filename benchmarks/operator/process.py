"""The operator as a process of its own, seen from outside: CPU time, memory, and its metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from daybreak_cli.playground import ROOT
from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.crds import await_crd
from daybreak_devcluster.ports import free_ports

SYSTEM_NAMESPACE = "daybreak-system"
USER = f"system:serviceaccount:{SYSTEM_NAMESPACE}:daybreak-operator"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_HISTOGRAM = "daybreak_operator_reconcile_seconds"
Buckets = Mapping[float, float]
"""Upper edge in seconds → reconciliations that took no longer, since the operator's start."""


def install_rights(cluster: Cluster, folder: Path) -> Path:
    """The CRD, the operator's ServiceAccount and its rights, from `manifests/base`; returns a
    kubeconfig that has these and no others."""
    for part in ("namespace", "crd", "rbac"):
        path = str(ROOT / f"manifests/base/{part}.yaml")
        cluster.kubectl("apply", "-n", SYSTEM_NAMESPACE, "-f", path)
    await_crd(cluster, "trainingruns.daybreak.dev")
    token = cluster.kubectl(
        "create", "token", "daybreak-operator", "-n", SYSTEM_NAMESPACE, "--duration=12h"
    ).stdout
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token.strip()}
    path = folder / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return path


class OperatorProcess:
    """`python -m daybreak_operator`, started and ended."""

    def __init__(self, cluster: Cluster, kubeconfig: Path, namespace: str, log: Path) -> None:
        (port,) = free_ports(1, "127.0.0.1")
        self._url = f"http://127.0.0.1:{port}/metrics"
        options = ("--namespace", namespace, "--http-host", "127.0.0.1", "--http-port", str(port))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daybreak_operator", *options],
                env=cluster.environment() | {"KUBECONFIG": str(kubeconfig)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._log = log

    def check(self) -> None:
        """Raises RuntimeError where it has ended."""
        if (code := self._process.poll()) is not None:
            last = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"the operator exited {code}:\n{last}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes more than half a minute."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """User and system time since its start."""
        return cpu_seconds(self._process.pid)

    def peak_rss_mib(self) -> float:
        """The most memory that it has held at a time."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def reconciles(self) -> Buckets:
        """By duration; its own histogram."""
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            text = answer.read().decode()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return {
            float(sample.labels["le"]): sample.value
            for sample in families[_HISTOGRAM].samples
            if sample.name.endswith("_bucket")
        }

    def await_ready(self, seconds: float = 60.0) -> None:
        """Returns when it serves its metrics."""
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            try:
                self.reconciles()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def control_plane_cpu_seconds(cluster: Cluster) -> dict[str, float]:
    """Of etcd, API server, controller manager and scheduler, by name."""
    parent = cluster.info.supervisor_pid
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {Path(f"/proc/{pid}/comm").read_text().strip(): cpu_seconds(int(pid)) for pid in pids}


def count(buckets: Buckets) -> float:
    """All of them."""
    return max(buckets.values(), default=0.0)


def between(before: Buckets, after: Buckets) -> Buckets:
    """What came in since `before`."""
    return {edge: after[edge] - before[edge] for edge in after}


def quantile(buckets: Buckets, q: float) -> float:
    """As PromQL's histogram_quantile: linear within a bucket, the last finite edge above it."""
    wanted, lower, below = q * count(buckets), 0.0, 0.0
    for edge, total in sorted(buckets.items()):
        if total >= wanted and total > below:
            if edge == float("inf"):
                return lower
            return lower + (edge - lower) * (wanted - below) / (total - below)
        lower, below = edge, total
    return lower
