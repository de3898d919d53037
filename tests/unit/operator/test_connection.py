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
async def api_server(
    until: float | None, arrived: asyncio.Event | None = None
) -> AsyncIterator[GuardedClient]:
    """A client and its API server, which answers nothing where `arrived` is to be set when a
    request is there."""

    over = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if arrived is not None:
            arrived.set()
            await over.wait()
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
        over.set()
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


async def test_a_write_under_way_ends_with_the_leadership(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is given up at the deadline, however long its answer may take."""
    loop = asyncio.get_running_loop()
    clock, arrived, seconds = loop.time, asyncio.Event(), 60.0
    async with api_server(clock() + seconds, arrived) as api:
        lost = counted("create", "events", "none")
        write = asyncio.create_task(client.CoreV1Api(api).create_namespaced_event("n", EVENT))
        await arrived.wait()
        assert not write.done()
        monkeypatch.setattr(loop, "time", lambda: clock() + seconds)
        with pytest.raises(TimeoutError):
            await write
        assert counted("create", "events", "none") == lost + 1


async def test_subresources_are_told_apart() -> None:
    """As RBAC names them."""
    async with api_server(until=None) as api:
        runs = ("daybreak.dev", "v1alpha1", "n", "trainingruns", "r")
        before = counted("update", "trainingruns/status", "200")
        custom = client.CustomObjectsApi(api)
        await custom.replace_namespaced_custom_object_status(*runs, {})
        assert counted("update", "trainingruns/status", "200") == before + 1
