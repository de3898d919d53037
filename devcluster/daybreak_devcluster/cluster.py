"""A development cluster that lives as long as the process that uses it.

Leaving the `with` block, an exception, Ctrl-C and even SIGKILL of the owner end its processes.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

from daybreak_devcluster.binaries import find_binaries
from daybreak_devcluster.info import ClusterInfo
from daybreak_devcluster.launch import end, launch
from daybreak_devcluster.layout import Layout
from daybreak_devcluster.nodespec import NodeSpec, numbered_nodes
from daybreak_devcluster.processes import tail
from daybreak_devcluster.statedir import clear_leftovers
from daybreak_devcluster.steps import Report

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


class KubectlError(Exception):
    """kubectl exited non-zero; the message holds its command and what it printed."""


class Cluster:
    """A running control plane and its nodes.

    `with Cluster(state_dir) as cluster:` starts it. Without nodes (`nodes=()`) no agent runs and
    pods stay pending. `flags` go behind the others on a program's command line, by its name:
    `{"kube-scheduler": ["--kube-api-qps=100"]}`.
    """

    def __init__(
        self,
        state_dir: Path,
        nodes: Sequence[NodeSpec] = numbered_nodes(1),
        report: Report = lambda line: None,
        flags: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._layout = Layout(state_dir.resolve())
        self._nodes = tuple(nodes)
        self._report = report
        self._flags = flags
        self._running: tuple[subprocess.Popen[bytes], ClusterInfo] | None = None

    def start(self) -> Self:
        """Start and wait until pods can be created and scheduled.

        Raises `BinariesNotFoundError` or `StartError`; nothing is left running then.
        """
        binaries = find_binaries(self._report)
        self._running = launch(self._layout.root, binaries, self._nodes, self._report, self._flags)
        return self

    def stop(self) -> None:
        """End every process and remove the state directory; safe to call twice."""
        if self._running is not None:
            end(self._running[0])
            self._running = None
            clear_leftovers(self._layout.root)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def info(self) -> ClusterInfo:
        """Where the cluster is. Raises `RuntimeError` while it is not running."""
        if self._running is None:
            raise RuntimeError("the development cluster is not running: call start() first")
        return self._running[1]

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.info.kubeconfig

    def failure(self) -> str | None:
        """Why the cluster ended by itself, or None while it runs."""
        if self._running is None or self._running[0].poll() is None:
            return None
        log = self._layout.log("supervisor")
        return f"the development cluster ended by itself:\n{tail(log, 30)}"

    def environment(self) -> dict[str, str]:
        """This process's environment with the cluster's kubectl first on PATH and its kubeconfig
        named, for tools that are started against the cluster."""
        return {
            **os.environ,
            "PATH": f"{self.info.binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "KUBECONFIG": str(self.info.kubeconfig),
            "KUBECACHEDIR": str(self._layout.kubectl_cache),
            "KUBERC": "off",
        }

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 (subprocess's own word)
        check: bool = True,
        timeout: float = 180.0,
    ) -> "subprocess.CompletedProcess[str]":
        """Run the cluster's kubectl as administrator.

        Raises `KubectlError` where it exits non-zero, unless `check` is off, and
        `subprocess.TimeoutExpired` after `timeout` seconds.
        """
        done = subprocess.run(
            [str(self.info.kubectl), *arguments],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            env=self.environment(),
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise KubectlError(
                f"`kubectl {' '.join(arguments)}` exited {done.returncode}: "
                f"{(done.stderr or done.stdout).strip()}"
            )
        return done

    def admin_api(self) -> "ApiClient":
        """A `kubernetes.client.ApiClient` with the administrator's rights; the caller closes it."""
        from kubernetes.config import new_client_from_config  # a second of imports: only on use

        return new_client_from_config(config_file=str(self.kubeconfig))
