"""Volcano on a development cluster: its own scheduler and controllers, as processes beside the
control plane.

`python tests/support/volcano.py` fills the user's cache and prints the paths. The programs are
built from Volcano's Go module; the CRDs and the scheduler's configuration, which is that of
Volcano's own chart, come from there. Nothing in them is ours but a constant (`_APIS`). The
admission webhooks do not run: they are for objects of Volcano's kinds, and Daybreak makes none.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from addons import await_answer, install_crds
from free_ports import free_port
from go_program import GoProgram, Part

from daybreak_devcluster.cluster import Cluster

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
_HOST, _OPENED_SECONDS = "127.0.0.1", 120


class Volcano:
    """Runs while the `with` block does. Its logs lie in `folder`, which exists."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder

    def __enter__(self) -> Self:
        scheduler, controllers = SCHEDULER.find(print), CONTROLLERS.find(print)
        crds = sorted(controllers.parent.glob("*.volcano.sh_*.yaml"))
        install_crds(self._cluster, crds)
        configuration = scheduler.parent / _CONFIGURATION
        with ExitStack() as started:
            # The scheduler makes the default Queue, and a controller opens it.
            self._start(started, scheduler, f"--scheduler-conf={configuration}")
            self._start(started, controllers)
            opened = ("--for=jsonpath={.status.state}=Open", "queues.scheduling.volcano.sh/default")
            self._cluster.kubectl("wait", *opened, f"--timeout={_OPENED_SECONDS}s")
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
        health = free_port()
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
        await_answer(program.name, process, f"http://{_HOST}:{health}/healthz", log)


if __name__ == "__main__":
    for program in (SCHEDULER, CONTROLLERS):
        program.print_path()
