"""Volcano on a development cluster: its own scheduler and controllers, as processes beside the
control plane.

`python tests/support/volcano.py` fills the user's cache and prints the paths. The programs are
built from Volcano's Go module; the CRDs and the scheduler's configuration, which is that of
Volcano's own chart, come from there. Nothing in them is ours but a constant (`_APIS`). The
admission webhooks do not run: they are for objects of Volcano's kinds, and Daybreak makes none.
"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml
from go_program import GoProgram, Part

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.crds import await_crd
from daybreak_devcluster.ports import free_ports
from daybreak_devcluster.processes import tail

_MODULE, _VERSION = "volcano.sh/volcano", "v1.15.1"
_APIS = Part(
    module="volcano.sh/apis",
    version="v1.14.0",
    added={
        "pkg/apis/scheduling/v1beta1/gate.go": "package v1beta1\n\n"
        'const QueueAllocationGateKey = GroupName + "/queue-allocation-gate"\n'
    },
)
"""The newest that could be had; of what the programs use, that of 1.15 has one name more."""
_CONFIGURATION = "volcano-scheduler.conf"


def _program(name: str, package: str, *files: str) -> GoProgram:
    return GoProgram(
        name=name,
        package=f"{_MODULE}/cmd/{package}",
        version=_VERSION,
        oldest_go=(1, 25),
        what="the gang scheduler of the tests",
        module=_MODULE,
        files=files,
        part=_APIS,
    )


SCHEDULER = _program(
    "volcano-scheduler", "scheduler", f"installer/helm/chart/volcano/config/{_CONFIGURATION}"
)
CONTROLLERS = _program(
    "volcano-controller-manager", "controller-manager", "config/crd/*/bases/*.yaml"
)
_HOST, _READY_SECONDS = "127.0.0.1", 120.0


class Volcano:
    """Runs while the `with` block does. Its logs lie in `folder`, which exists."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder

    def __enter__(self) -> Self:
        scheduler, controllers = SCHEDULER.find(print), CONTROLLERS.find(print)
        crds = sorted(controllers.parent.glob("*.volcano.sh_*.yaml"))
        # On the server's side: a Job's schema is too long for an annotation.
        self._cluster.kubectl("apply", "--server-side", *(f"--filename={file}" for file in crds))
        for file in crds:
            await_crd(self._cluster, yaml.safe_load(file.read_text())["metadata"]["name"])
        configuration = scheduler.parent / _CONFIGURATION
        with ExitStack() as started:
            # The scheduler makes the default Queue, and a controller opens it.
            self._start(started, scheduler, f"--scheduler-conf={configuration}")
            self._start(started, controllers)
            opened = ("--for=jsonpath={.status.state}=Open", "queues.scheduling.volcano.sh/default")
            self._cluster.kubectl("wait", *opened, f"--timeout={_READY_SECONDS:.0f}s")
            self._processes = started.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._processes.close()

    def _start(self, started: ExitStack, program: Path, *arguments: str) -> None:
        (health,) = free_ports(1, _HOST)
        log = self._folder / f"{program.name}.log"
        with log.open("w") as written:
            process = subprocess.Popen(
                [
                    *(program, f"--kubeconfig={self._cluster.kubeconfig}", "--leader-elect=false"),
                    *("--enable-healthz", f"--healthz-address={_HOST}:{health}", *arguments),
                ],
                stdout=written,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
            )
        started.callback(process.wait)
        started.callback(process.terminate)
        _wait_until_healthy(process, f"http://{_HOST}:{health}/healthz", log)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
            return
        except urllib.error.URLError:
            assert process.poll() is None, f"volcano ended:\n{tail(log, 60)}"
            assert time.monotonic() < deadline, f"volcano is not ready:\n{tail(log, 60)}"
        time.sleep(0.1)


if __name__ == "__main__":
    for program in (SCHEDULER, CONTROLLERS):
        program.print_path()
