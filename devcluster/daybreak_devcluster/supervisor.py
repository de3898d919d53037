"""The process that owns a development cluster's processes, files and lock.

It starts the programs in order, tells its starter over standard output how far it is (one JSON
object a line: `progress`, then `ready` or `error`), and ends everything and removes the state
directory on SIGTERM or SIGINT, and when its standard input closes: that is how it learns that its
starter is gone, however that ended. A line `detach` on standard input makes it stay. On SIGUSR1 it
starts the programs anew that the file `Layout.restart` names (see `faults`).

Single-threaded on purpose: `processes.Child` needs every fork to come from the main thread.
"""

import argparse
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from daybreak_devcluster import components
from daybreak_devcluster.credentials import write_credentials
from daybreak_devcluster.info import ClusterInfo
from daybreak_devcluster.layout import Layout
from daybreak_devcluster.nodespec import NodeSpec
from daybreak_devcluster.ports import free_ports
from daybreak_devcluster.probes import Probes
from daybreak_devcluster.processes import Child
from daybreak_devcluster.release import read_release
from daybreak_devcluster.statedir import OwnedStateDir, StateDirError, take

_START_SECONDS = 120.0
_POLL_SECONDS = 0.05
_AGENT_GRACE_SECONDS = 10.0
_STDIN = 0


class StopRequested(Exception):  # noqa: N818 (not an error)
    """Somebody asked for the end, or the starter is gone."""


class ClusterError(Exception):
    """The cluster cannot start or go on; the message carries the log's last lines."""


class Inbox:
    """What can wake the supervisor: signals, ended children, and its standard input."""

    def __init__(self) -> None:
        self._stop_signal: signal.Signals | None = None
        self._detached = False
        self.restart_asked = False
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only for its byte on the wake-up pipe
        signal.signal(signal.SIGUSR1, self._on_restart)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self._stop_signal = signal.Signals(number)

    def _on_restart(self, _number: int, _frame: FrameType | None) -> None:
        self.restart_asked = True

    def wait(self, seconds: float | None) -> None:
        """Return after an event or the time.

        Raises `StopRequested` after a signal, or where standard input closed before `detach`.
        """
        sources = [self._wake_read] if self._detached else [self._wake_read, _STDIN]
        readable, _, _ = select.select(sources, [], [], seconds)
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)
        if self._stop_signal is not None:
            raise StopRequested(f"received {self._stop_signal.name}")
        if _STDIN in readable:
            message = os.read(_STDIN, 4096)
            if not message:
                raise StopRequested("the process that started this cluster is gone")
            self._detached = b"detach" in message


class Supervisor:
    """Starts, watches and stops one cluster."""

    def __init__(
        self,
        layout: Layout,
        binaries: Path,
        nodes: Sequence[NodeSpec],
        flags: Mapping[str, Sequence[str]],
    ) -> None:
        self._layout = layout
        self._binaries = binaries
        self._nodes = nodes
        self._flags = flags
        self._inbox = Inbox()
        self._children: list[Child] = []
        self._agents: list[Child] = []

    def start(self, report: Callable[[str], None]) -> ClusterInfo:
        """Start everything and return once pods can be created and scheduled.

        Raises `ClusterError` where a program ends or is not ready in time.
        """
        started = time.monotonic()
        deadline = started + _START_SECONDS
        layout, binaries = self._layout, self._binaries
        ports = components.Ports(*free_ports(5, components.HOST))
        for directory in (layout.logs, layout.nodes):
            directory.mkdir()
        write_credentials(layout, ports)
        probes = Probes(layout, ports)

        etcd = self._spawn("etcd", components.etcd(binaries, layout, ports))
        apiserver = self._spawn("kube-apiserver", components.apiserver(binaries, layout, ports))
        self._await(etcd, probes.etcd, deadline)
        report("etcd is ready")
        self._await(apiserver, probes.apiserver, deadline)
        report("kube-apiserver is ready")
        manager = self._spawn(
            "kube-controller-manager", components.controller_manager(binaries, layout, ports)
        )
        scheduler = self._spawn("kube-scheduler", components.scheduler(binaries, layout, ports))
        self._agents = [self._spawn_agent(node) for node in self._nodes]
        self._await(scheduler, probes.scheduler, deadline)
        report("kube-scheduler is ready")
        self._await(manager, probes.controller_manager, deadline)
        self._await(manager, probes.default_namespace, deadline)
        report("kube-controller-manager is ready")
        for node, agent in zip(self._nodes, self._agents, strict=True):
            self._await(agent, lambda node=node: probes.node(node), deadline)  # type: ignore[misc]
            report(f"node {node.name} is ready")

        info = ClusterInfo(
            state_dir=layout.root,
            kubeconfig=layout.kubeconfig,
            server=f"https://{components.HOST}:{ports.apiserver}",
            binaries=binaries,
            version=read_release().kubernetes,
            nodes=tuple(node.name for node in self._nodes),
            supervisor_pid=os.getpid(),
            start_seconds=round(time.monotonic() - started, 2),
        )
        partial = layout.info.with_suffix(".new")
        partial.write_text(info.to_json())
        partial.replace(layout.info)
        return info

    def watch(self) -> None:
        """Block until somebody asks for the end (`StopRequested`) or a program dies."""
        while True:
            self._inbox.wait(None)
            if self._inbox.restart_asked:
                self._inbox.restart_asked = False
                self._restart()
            self._check_programs()

    def _restart(self) -> None:
        """Kills the programs that are named, if they still run, and starts them as before; the
        file goes when it is done."""
        file = self._layout.restart
        names = set(file.read_text().split())
        for programs in (self._children, self._agents):
            for place, child in enumerate(programs):
                if child.name in names:
                    child.wait_or_kill(0.0)
                    programs[place] = Child(child.name, child.command, self._layout.log(child.name))
        file.unlink()

    def stop(self) -> None:
        """End every process. The agents get time to end their pods; the rest holds no data
        that outlives the cluster, and is killed."""
        for agent in self._agents:
            agent.terminate()
        deadline = time.monotonic() + _AGENT_GRACE_SECONDS
        for agent in self._agents:
            agent.wait_or_kill(max(0.0, deadline - time.monotonic()))
        for child in reversed(self._children):
            child.wait_or_kill(0.0)

    def _spawn(self, name: str, command: Sequence[str]) -> Child:
        child = Child(name, [*command, *self._flags.get(name, ())], self._layout.log(name))
        self._children.append(child)
        return child

    def _spawn_agent(self, node: NodeSpec) -> Child:
        name = f"agent-{node.name}"
        command = [
            *(sys.executable, "-P", "-m", "daybreak_devcluster.agent"),
            *("--kubeconfig", str(self._layout.pki / "agent.kubeconfig")),
            *("--node-name", node.name),
            *("--capacity", node.capacity_argument()),
            *("--state-dir", str(self._layout.nodes / node.name)),
        ]
        return Child(name, command, self._layout.log(name))

    def _await(self, child: Child, ready: Callable[[], bool], deadline: float) -> None:
        while not ready():
            self._check_programs()
            if (status := child.exit_status()) is not None:
                raise ClusterError(_ended(child, status))
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{child.name} was not ready {_START_SECONDS:.0f} s after the start. "
                    f"The last lines of its log:\n{child.last_lines()}"
                )
            self._inbox.wait(_POLL_SECONDS)

    def _check_programs(self) -> None:
        """A dead program ends the cluster; a dead agent is a dead node, as on a real cluster."""
        for child in self._children:
            if (status := child.exit_status()) is not None:
                raise ClusterError(_ended(child, status))


def _ended(child: Child, status: str) -> str:
    return f"{child.name} {status}. The last lines of its log:\n{child.last_lines()}"


def _emit(event: str, value: str) -> None:
    print(json.dumps({event: value}), flush=True)


def _turn_output_to(log: Path) -> None:
    """Let go of the starter's pipe; from here on, what there is to say goes to the log."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def run(
    owned: OwnedStateDir,
    binaries: Path,
    nodes: Sequence[NodeSpec],
    flags: Mapping[str, Sequence[str]],
) -> int:
    """Run one cluster from start to end; returns the exit code."""
    supervisor = Supervisor(owned.layout, binaries, nodes, flags)
    ready = failed_later = False
    try:
        if owned.was_stale:
            _emit("progress", f"cleared what a dead cluster left in {owned.layout.root}")
        info = supervisor.start(lambda line: _emit("progress", line))
        ready = True
        _emit("ready", info.to_json())
        _turn_output_to(owned.layout.log("supervisor"))
        supervisor.watch()
    except StopRequested as reason:
        print(f"stopping: {reason}", file=sys.stderr, flush=True)
    except ClusterError as error:
        failed_later = ready
        if ready:
            print(f"the cluster ended: {error}", file=sys.stderr, flush=True)
        else:
            _emit("error", str(error))
    finally:
        supervisor.stop()
        if failed_later:
            owned.release()  # the logs stay until the next `up` or `down`
        else:
            owned.remove()
    return 0 if ready and not failed_later else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, take the state directory, run."""
    parser = argparse.ArgumentParser(prog="daybreak_devcluster.supervisor")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--binaries", type=Path, required=True)
    parser.add_argument("--node", action="append", default=[], metavar="NAME:CAPACITY")
    parser.add_argument("--flag", action="append", default=[], metavar="PROGRAM:FLAG")
    options = parser.parse_args(arguments)
    nodes = [NodeSpec.parse(*argument.split(":", 1)) for argument in options.node]
    flags: dict[str, list[str]] = {}
    for program, _, flag in (argument.partition(":") for argument in options.flag):
        flags.setdefault(program, []).append(flag)
    try:
        owned = take(options.state_dir)
    except StateDirError as error:
        _emit("error", str(error))
        return 1
    return run(owned, options.binaries, nodes, flags)


if __name__ == "__main__":
    sys.exit(main())
