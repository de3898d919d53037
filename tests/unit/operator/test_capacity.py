"""Which nodes are lost, and which have room for one more worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from daybreak_operator.capacity import Inventory
from daybreak_operator.children.overlay import keeping_off
from daybreak_operator.cluster import Cluster

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


@asynccontextmanager
async def api_server(
    answer: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[client.ApiClient]:
    """A client of an API server that answers so."""
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        async with client.ApiClient(configuration) as api:
            yield api


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
    assert len(Inventory([there]).capacity(worker, set()).free) == free


def test_pods_take_room_until_they_have_ended() -> None:
    """Whoever's they are."""
    left = Inventory([node("a"), node("b")])
    left.take([pod("a"), pod("b", "Succeeded"), pod("gone")])
    assert len(left.capacity(pod(), set()).free) == 1


async def test_a_cluster_of_many_pods_is_read_in_pages() -> None:
    """All pages count, and no answer is of any size."""
    asked: list[dict[str, str]] = []
    pages = {"": ([pod("a")], "more"), "more": ([pod("b")], None)}

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/api/v1/nodes":
            return web.json_response({"items": [node("a"), node("b"), node("c")], "metadata": {}})
        asked.append(dict(request.query))
        items, more = pages[request.query.get("continue", "")]
        return web.json_response({"items": items, "metadata": {"continue": more} if more else {}})

    async with api_server(answer) as api:
        left = await Cluster(api).inventory()
    assert left is not None
    assert len(left.capacity(pod(), set()).free) == 1
    assert [query["limit"] for query in asked] == ["500", "500"]


@pytest.mark.parametrize("status", [403, 500])
async def test_a_run_goes_on_without_what_cannot_be_read(status: int) -> None:
    """Neither rights that are not there nor a webhook that is away may stop a look."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"message": "conversion webhook"}, status=status)

    async with api_server(answer) as api:
        assert await Cluster(api).inventory() is None


def test_nodes_that_do_not_answer_or_exist_are_lost() -> None:
    """Those that hold the run's pods."""
    left = Inventory([node("a"), node("b", "Unknown"), node("c", "False")])
    assert left.capacity(pod(), {"a", "b", "gone"}).lost == {"b", "gone"}
