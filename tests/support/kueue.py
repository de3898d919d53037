"""Kueue on a development cluster: its own manager, as a process beside the control plane.

`python tests/support/kueue.py` fills the user's cache and prints the path. The manager is built
from Kueue's Go module, unchanged, and its CRDs and webhooks come from there. Only where a webhook
is called is ours: at an address of this machine, for a development cluster has no Services.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from addons import await_answer, install_crds
from free_ports import free_port
from go_program import GoProgram

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.pki import Authority
from daybreak_devcluster.processes import tail

KUEUE = GoProgram(
    name="kueue",
    package="sigs.k8s.io/kueue/cmd/kueue",
    version="v0.19.2",
    oldest_go=(1, 26),
    what="the queue of the tests",
    module="sigs.k8s.io/kueue",
    files=("config/components/crd/bases/*.yaml", "config/components/webhook/manifests.yaml"),
)
_HOST = "127.0.0.1"
_METRICS_CERTIFICATES = "/etc/kueue/metrics/certs"
_CALLED_FOR = ("batch", "kueue.x-k8s.io")
"""API groups whose webhooks are registered: those of the manager's one framework, and its own."""
Json = dict[str, Any]


class Kueue:
    """Runs while the `with` block does, on a cluster that nobody else uses: when it is over, Jobs
    with a queue's name wait for ever. Its files lie in `folder`, which exists."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._log = folder / "kueue.log"

    def __enter__(self) -> Self:
        program = KUEUE.find(print)
        crds = sorted(program.parent.glob("kueue.x-k8s.io_*.yaml"))
        install_crds(self._cluster, crds)
        self._cluster.kubectl("create", "namespace", "kueue-system")
        webhook, probe = free_port(), free_port()
        authority = Authority("kueue")
        certificates = self._certificates(authority)
        config = self._folder / "kueue.yaml"
        config.write_text(yaml.safe_dump(_configuration(certificates, webhook, probe)))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*_sandbox(certificates), str(program), f"--config={config}", "--zap-log-level=2"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._cluster.environment(),
            )
        await_answer("kueue", self._process, f"http://{_HOST}:{probe}/readyz", self._log)
        for body in yaml.safe_load_all((program.parent / "manifests.yaml").read_text()):
            called = _called_at(body, webhook, authority.certificate)
            self._cluster.kubectl("create", "-f", "-", input=yaml.safe_dump(called))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def log(self) -> str:
        return tail(self._log, 60)

    def _certificates(self, authority: Authority) -> Path:
        folder = self._folder / "certificates"
        folder.mkdir()
        authority.server("kueue", [_HOST]).write(folder, "tls")
        return folder


def _sandbox(certificates: Path) -> list[str]:
    """The manager finds the certificate of its metrics at a fixed path in /etc, or does not start;
    so it gets an /etc of its own."""
    return [
        *("bwrap", "--die-with-parent", "--dev-bind", "/", "/", "--tmpfs", "/etc"),
        *("--ro-bind", str(certificates), _METRICS_CERTIFICATES),
    ]


def _configuration(certificates: Path, webhook: int, probe: int) -> Json:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"{_HOST}:{probe}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": _HOST, "port": webhook, "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        # A second API server, for listings of who waits.
        "featureGates": {"VisibilityOnDemand": False},
        "integrations": {"frameworks": ["batch/job"]},
    }


def _called_at(configuration: Json, port: int, authority: bytes) -> Json:
    """A webhook configuration whose webhooks are called at this port."""
    webhooks = []
    for webhook in configuration["webhooks"]:
        if any(group in _CALLED_FOR for rule in webhook["rules"] for group in rule["apiGroups"]):
            path = webhook["clientConfig"]["service"]["path"]
            bundle = base64.b64encode(authority).decode()
            client = {"url": f"https://{_HOST}:{port}{path}", "caBundle": bundle}
            webhooks.append(webhook | {"clientConfig": client})
    return configuration | {"webhooks": webhooks}


if __name__ == "__main__":
    KUEUE.print_path()
