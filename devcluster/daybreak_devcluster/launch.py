"""Starts a supervisor and waits until its cluster is ready."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from daybreak_devcluster.info import ClusterInfo
from daybreak_devcluster.nodespec import NodeSpec
from daybreak_devcluster.steps import Report


class StartError(Exception):
    """The cluster did not start; the message says which program failed and its last lines."""


def launch(
    state_dir: Path,
    binaries: Path,
    nodes: Sequence[NodeSpec],
    report: Report,
    flags: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple["subprocess.Popen[bytes]", ClusterInfo]:
    """Start a supervisor; return it and the ready cluster. `flags`: see `Cluster`.

    The cluster ends when the supervisor's standard input closes, so also with this process, unless
    `detach` is written to it. Raises `StartError`; nothing is left running then.
    """
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "daybreak_devcluster.supervisor",
        ),  # -P: never import from cwd
        *("--state-dir", str(state_dir.resolve()), "--binaries", str(binaries)),
        *(f"--node={node.name}:{node.capacity_argument()}" for node in nodes),
        *(f"--flag={program}:{flag}" for program, each in flags.items() for flag in each),
    ]
    supervisor = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for its starter, who closes its input
    )
    try:
        info = _await_ready(supervisor, report)
    except BaseException:
        end(supervisor)
        raise
    return supervisor, info


def end(supervisor: "subprocess.Popen[bytes]") -> None:
    """Close the supervisor's input and wait for it to end its cluster."""
    for stream in (supervisor.stdin, supervisor.stdout):
        if stream is not None:
            stream.close()
    supervisor.wait()


def _await_ready(supervisor: "subprocess.Popen[bytes]", report: Report) -> ClusterInfo:
    assert supervisor.stdout is not None
    other_output: list[str] = []
    for line in supervisor.stdout:
        text = line.decode(errors="replace").rstrip()
        try:
            event, value = next(iter(json.loads(text).items()))
        except (ValueError, AttributeError):  # a warning or a traceback
            other_output.append(text)
            continue
        if event == "ready":
            return ClusterInfo.from_json(value)
        if event == "error":
            raise StartError(f"the development cluster did not start: {value}")
        report(value)
    code = supervisor.wait()
    last = "\n".join(f"    {text}" for text in other_output[-15:])
    raise StartError(f"the development cluster's supervisor exited {code}:\n{last}")
