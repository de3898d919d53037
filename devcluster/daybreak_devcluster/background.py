"""A development cluster in the background: what `daybreak up`, `down` and `status` do."""

import os
import select
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from daybreak_devcluster.binaries import find_binaries
from daybreak_devcluster.info import ClusterInfo
from daybreak_devcluster.launch import launch
from daybreak_devcluster.layout import Layout, default_state_dir
from daybreak_devcluster.nodespec import NodeSpec, numbered_nodes
from daybreak_devcluster.processes import tail
from daybreak_devcluster.statedir import StateDirError, clear_leftovers, live_owner

_STOP_SECONDS = 30


@dataclass(frozen=True)
class Status:
    """What there is in a state directory."""

    state: Literal["running", "starting", "dead", "absent"]
    """`dead`: a cluster ended there without being stopped; `up` and `down` clear it away."""
    info: ClusterInfo | None
    """Set while running."""
    detail: str
    """For a person: where it is, or why it died."""


def up(
    nodes: int | Sequence[NodeSpec] = 1,
    state_dir: Path | None = None,
    console: Console | None = None,
) -> ClusterInfo:
    """Start a cluster that stays until `down`; returns once pods can be scheduled.

    Raises `StateDirError` where one runs already, `BinariesNotFoundError`, or `StartError`. Ctrl-C
    during the start ends what was started.
    """
    console = Console(stderr=True) if console is None else console
    root = default_state_dir() if state_dir is None else state_dir.resolve()
    if live_owner(root) is not None:
        raise StateDirError(
            f"a development cluster already runs in {root}; `daybreak down` ends it"
        )
    specs = numbered_nodes(nodes) if isinstance(nodes, int) else tuple(nodes)
    with console.status("finding the control plane's programs") as spinner:

        def report(line: str) -> None:
            spinner.update(line)
            console.log(line, markup=False, highlight=False)

        binaries = find_binaries(report)
        spinner.update("starting etcd and kube-apiserver")
        supervisor, info = launch(root, binaries, specs, report)
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    supervisor.stdin.write(b"detach\n")
    supervisor.stdin.close()
    supervisor.stdout.close()
    supervisor.returncode = 0  # ours no longer: silences Popen's warning about a running child
    return info


def down(state_dir: Path | None = None) -> bool:
    """End the cluster and remove its state directory; returns whether there was one.

    Raises `StateDirError` where the directory is not a development cluster's.
    """
    root = default_state_dir() if state_dir is None else state_dir.resolve()
    owner = live_owner(root)
    if owner is not None:
        _end_process(owner)
    return clear_leftovers(root) or owner is not None


def status(state_dir: Path | None = None) -> Status:
    """Look at a state directory; changes nothing."""
    root = default_state_dir() if state_dir is None else state_dir.resolve()
    layout = Layout(root)
    if live_owner(root) is not None:
        if not layout.info.exists():
            return Status("starting", None, f"a cluster is starting in {root}")
        info = ClusterInfo.from_json(layout.info.read_text())
        return Status("running", info, f"Kubernetes {info.version} at {info.server}")
    if layout.lock.exists():
        log = tail(layout.log("supervisor"), 15)
        return Status("dead", None, f"a cluster died in {root}; its last words:\n{log}")
    return Status("absent", None, f"no cluster in {root}")


def _end_process(pid: int) -> None:
    """SIGTERM, and SIGKILL where that does not help; the kernel ends its children then."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _STOP_SECONDS)):
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
