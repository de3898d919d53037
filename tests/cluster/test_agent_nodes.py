"""Nodes of the development cluster come and go."""

import json
import time
from pathlib import Path

import pytest

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.faults import FaultError, drop_node, processes
from daybreak_devcluster.nodespec import NodeSpec

pytestmark = pytest.mark.cluster


def test_pretend_gpus_a_lost_node_and_nothing_left_behind(tmp_path: Path) -> None:
    """Nodes offer the capacity they were told; one that the control plane gave up too soon is ready
    again; when one is lost its processes die with it and the control plane notices by itself;
    stopping the cluster ends what runs on the others."""
    nodes = [
        NodeSpec("a", {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "8"}),
        NodeSpec("b", {"cpu": "8", "memory": "16Gi"}),
    ]
    with Cluster(tmp_path / "state", nodes) as cluster:
        for node in ("a", "b"):
            cluster.kubectl("create", "-f", "-", input=json.dumps(sleeper(node)))
            cluster.kubectl("wait", f"pod/on-{node}", "--for=condition=Ready", "--timeout=120s")
        gpus = "jsonpath={.status.allocatable.nvidia\\.com/gpu}"
        assert cluster.kubectl("get", "node", "a", "-o", gpus).stdout == "8"
        lost, kept = (processes(cluster, "default", f"on-{node}") for node in ("a", "b"))
        # As the control plane does to a node whose Lease is late, on a machine that stalls.
        forgotten = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
        cluster.kubectl("patch", "node", "b", "--subresource=status", "-p", json.dumps(forgotten))
        cluster.kubectl("wait", "node/b", "--for=condition=Ready", "--timeout=120s")
        drop_node(cluster, "a")
        await_end(lost)
        with pytest.raises(FaultError):
            drop_node(cluster, "a")
        cluster.kubectl("wait", "node/a", "--for=condition=Ready=Unknown", "--timeout=120s")
        status = "jsonpath={.status.phase}"
        assert cluster.kubectl("get", "pod", "on-b", "-o", status).stdout == "Running"
    assert [pid for pid in kept if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.iterdir()) == []


def sleeper(node: str) -> dict[str, object]:
    """A pod that must run on that node; the one on `a` wants GPUs."""
    resources = {"limits": {"nvidia.com/gpu": "8"}} if node == "a" else {}
    container = {
        "name": "main",
        "image": "none",
        "command": ["bash", "-c", "trap 'exit 0' TERM; sleep 600 & wait"],
        "resources": resources,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"on-{node}"},
        "spec": {"containers": [container], "nodeSelector": {"kubernetes.io/hostname": node}},
    }


def await_end(pids: tuple[int, ...]) -> None:
    """The kernel ends the processes of a dead agent in its own time, which is short."""
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.01)
