"""The client of the API server: no write without the Lease, and every request is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio import client
from prometheus_client import REGISTRY

from daybreak_operator.connection import GuardedClient
from daybreak_operator.leader import NotLeadingError

EVENT = {"metadata": {"name": "e", "namespace": "n"}, "involvedObject": {}}


@asynccontextmanager
async def api_server(until: float | None, seconds: float = 0.0) -> AsyncIterator[GuardedClient]:
    """A client whose API server takes so long for an answer."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(seconds)
        return web.json_response(EVENT if request.method != "GET" else {"items": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    (address, *_) = runner.addresses
    try:
        configuration = client.Configuration(host=f"http://127.0.0.1:{address[1]}")
        limit = None if until is None else lambda: until
        async with GuardedClient(limit, configuration) as api:
            yield api
    finally:
        await runner.cleanup()


def counted(verb: str, resource: str, code: str) -> float:
    labels = {"verb": verb, "resource": resource, "code": code}
    return REGISTRY.get_sample_value("daybreak_operator_api_requests_total", labels) or 0.0


async def test_without_the_lease_nothing_is_written_and_all_can_be_read() -> None:
    """From the deadline on, a write is not even sent."""
    now = asyncio.get_running_loop().time()
    async with api_server(until=now - 0.001) as api:
        core, reads = client.CoreV1Api(api), counted("list", "pods", "200")
        await core.list_namespaced_pod("n")
        assert counted("list", "pods", "200") == reads + 1
        with pytest.raises(NotLeadingError, match="POST was not sent"):
            await core.create_namespaced_event("n", EVENT)
        with pytest.raises(NotLeadingError):
            await client.BatchV1Api(api).delete_namespaced_job("j", "n")
    async with api_server(until=None) as api:
        await client.CoreV1Api(api).create_namespaced_event("n", EVENT)


async def test_a_write_under_way_ends_with_the_leadership() -> None:
    """It is given up at the deadline, however long it may take."""
    now = asyncio.get_running_loop().time()
    async with api_server(until=now + 0.2, seconds=5.0) as api:
        lost = counted("create", "events", "none")
        with pytest.raises(TimeoutError):
            await client.CoreV1Api(api).create_namespaced_event("n", EVENT)
        assert asyncio.get_running_loop().time() - now < 3.0
        assert counted("create", "events", "none") == lost + 1


async def test_subresources_are_told_apart() -> None:
    """As RBAC names them."""
    async with api_server(until=None) as api:
        runs = ("daybreak.dev", "v1alpha1", "n", "trainingruns", "r")
        before = counted("update", "trainingruns/status", "200")
        custom = client.CustomObjectsApi(api)
        await custom.replace_namespaced_custom_object_status(*runs, {})
        assert counted("update", "trainingruns/status", "200") == before + 1
