"""Misbehaviour on purpose, for tests: processes and nodes that die or freeze.

Everything happens from outside, by signals: what runs in the pod, and the control plane, learn of
it as they would on a real cluster. Processes are chosen by a `match`: `NAME=value` is looked for in
their environment (`RANK=1` is a torchrun rank), anything else in their command line.
"""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.layout import OUT_OF_MEMORY, Layout

_RESTART_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


class FaultError(Exception):
    """There is nothing to misbehave: no such pod, process or node."""


def processes(
    cluster: Cluster, namespace: str, pod: str, match: str | None = None
) -> tuple[int, ...]:
    """The process IDs (as this machine numbers them) in a pod's running containers.

    Each container's process 1 comes first. Raises `FaultError` where no process matches.
    """
    found: list[int] = []
    for folder in _container_folders(cluster, namespace, pod):
        if number := _read(folder / "pid"):  # not yet written, or gone with its container
            found += [int(number), *_descendants(int(number))]
    chosen = tuple(pid for pid in found if match is None or _matches(pid, match))
    if not chosen:
        what = "no process" if match is None else f"no process that matches {match!r}"
        raise FaultError(f"pod {namespace}/{pod} has {what}")
    return chosen


def kill_process(
    cluster: Cluster,
    namespace: str,
    pod: str,
    match: str | None = None,
    number: signal.Signals = signal.SIGKILL,
) -> tuple[int, ...]:
    """Send a signal to the processes that match, or to process 1 of each container where `match` is
    None (whose SIGKILL ends the container). Returns their IDs; raises `FaultError`."""
    chosen = processes(cluster, namespace, pod, match)
    if match is None:
        chosen = tuple(pid for pid in chosen if _is_first(pid))
    for pid in chosen:
        os.kill(pid, number)
    return chosen


def run_out_of_memory(cluster: Cluster, namespace: str, pod: str) -> None:
    """SIGKILL to each container, as the kernel sends it to one that exceeds its memory limit, and
    its status says OOMKilled. Raises `FaultError`."""
    for folder in _container_folders(cluster, namespace, pod):
        folder.joinpath(OUT_OF_MEMORY).touch()
    kill_process(cluster, namespace, pod)


def freeze(cluster: Cluster, namespace: str, pod: str, match: str | None = None) -> tuple[int, ...]:
    """Stop the processes that match (all of the pod where `match` is None) without ending them.

    Returns their IDs for `thaw`; raises `FaultError`.
    """
    chosen = processes(cluster, namespace, pod, match)
    for pid in chosen:
        os.kill(pid, signal.SIGSTOP)
    return chosen


def thaw(frozen: tuple[int, ...]) -> None:
    """Let frozen processes go on; those that are gone by now do not matter."""
    for pid in frozen:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


def drop_node(cluster: Cluster, node: str) -> None:
    """The node fails as if its power were cut: its pods' processes die, its heartbeat ends, and
    nobody tells the API server. Raises `FaultError` where the node has no running agent."""
    path = Layout(cluster.info.state_dir).nodes / node / "agent.pid"
    try:
        pid = int(path.read_text())
    except FileNotFoundError:
        raise FaultError(f"{path} does not exist: no node {node!r} was started here") from None
    if not _matches(pid, "daybreak_devcluster.agent"):  # nor does a zombie
        raise FaultError(f"node {node!r} has no running agent: process {pid} has ended")
    os.kill(pid, signal.SIGKILL)


def return_node(cluster: Cluster, node: str) -> None:
    """Power is back at a node that was dropped: its agent starts anew, and the pods that it still
    has there have failed."""
    _restart(cluster, f"agent-{node}")


def restart_apiserver(cluster: Cluster) -> None:
    """SIGKILL to the API server, and a new one in its place; returns when it answers."""
    _restart(cluster, "kube-apiserver")
    deadline = time.monotonic() + _RESTART_SECONDS
    while cluster.kubectl("get", "--raw", "/readyz", check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise FaultError(f"the API server was not ready {_RESTART_SECONDS:.0f} s later")
        time.sleep(_LOOK_SECONDS)


def _restart(cluster: Cluster, name: str) -> None:
    file = Layout(cluster.info.state_dir).restart
    partial = file.with_suffix(".new")
    partial.write_text(name)
    partial.replace(file)
    os.kill(cluster.info.supervisor_pid, signal.SIGUSR1)
    deadline = time.monotonic() + _RESTART_SECONDS
    while file.exists():
        if time.monotonic() > deadline:
            raise FaultError(f"the supervisor did not restart {name}")
        time.sleep(_LOOK_SECONDS)


def _container_folders(cluster: Cluster, namespace: str, pod: str) -> tuple[Path, ...]:
    """Of the containers that run; none where the pod has no node."""
    answer = json.loads(cluster.kubectl("-n", namespace, "get", "pod", pod, "-o", "json").stdout)
    node, uid = answer["spec"].get("nodeName"), answer["metadata"]["uid"]
    containers = Layout(cluster.info.state_dir).nodes / str(node) / "pods" / uid / "containers"
    return tuple(path.parent for path in sorted(containers.glob("*/pid")))


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield int(child)
            yield from _descendants(int(child))


def _matches(pid: int, match: str) -> bool:
    if _VARIABLE.match(match):
        return match.encode() in _read(Path(f"/proc/{pid}/environ")).split(b"\0")
    return match.encode() in _read(Path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ")


def _is_first(pid: int) -> bool:
    """Whether it is process 1 of its own process namespace."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(b"NSpid:"):
            return line.split()[-1] == b"1"
    return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return b""
