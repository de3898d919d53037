"""Which nodes are lost, and which have room for one more worker."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.capacity import capacity
from daybreak_operator.children.overlay import keeping_off

GPU = "nvidia.com/gpu"


def node(name: str, ready: str = "True", gpus: str = "8", **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"zone": "a", "rack": "7"}},
        "spec": fields,
        "status": {
            "allocatable": {"pods": "9", GPU: gpus, "cpu": "4", "memory": "16Gi"},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


def pod(node_name: str | None = None, phase: str = "Running", **spec: Any) -> dict[str, Any]:
    resources = {"limits": {GPU: 8}, "requests": {"cpu": "500m", "memory": "1Gi"}}
    made: dict[str, Any] = {"containers": [{"resources": resources}], **spec}
    if node_name is not None:
        made["nodeName"] = node_name
    return {"spec": made, "status": {"phase": phase}}


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}


def affinity(key: str, operator: str, *values: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    ("there", "worker", "free"),
    [
        (node("a"), pod(), 1),
        (node("a", ready="Unknown"), pod(), 0),
        (node("a", gpus="7"), pod(), 0),
        (node("a", unschedulable=True), pod(), 0),
        (node("a", taints=[TAINT]), pod(), 0),
        (node("a", taints=[TAINT]), pod(tolerations=[{"key": "gpu", "value": "yes"}]), 1),
        (node("a", taints=[TAINT]), pod(tolerations=[{"operator": "Exists"}]), 1),
        (node("a"), pod(nodeSelector={"zone": "b"}), 0),
        (node("a"), pod(**affinity("zone", "In", "a")), 1),
        (node("a"), pod(**affinity("zone", "NotIn", "a")), 0),
        (node("a"), pod(**affinity("rack", "Gt", "6")), 1),
        (node("a"), pod(**affinity("gone", "Exists")), 0),
        (node("a"), keeping_off(pod(), ["a"]), 0),
        (node("a"), keeping_off(pod(**affinity("zone", "In", "a")), ["b"]), 1),
    ],
)
def test_a_node_has_room_where_it_is_ready_matches_and_is_not_full(
    there: dict[str, Any], worker: dict[str, Any], free: int
) -> None:
    """As the scheduler sees it, as far as one can tell."""
    assert capacity([there], [], worker, set()).free == free


def test_pods_take_room_until_they_have_ended() -> None:
    """Whoever's they are."""
    nodes = [node("a"), node("b")]
    assert capacity(nodes, [pod("a"), pod("b", "Succeeded")], pod(), set()).free == 1


def test_nodes_that_do_not_answer_or_exist_are_lost() -> None:
    """Those that hold the run's pods."""
    nodes = [node("a"), node("b", "Unknown"), node("c", "False")]
    assert capacity(nodes, [], pod(), {"a", "b", "gone"}).lost == {"b", "gone"}
