"""An API server that will not have an object."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from daybreak_operator.act import act
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cluster import Cluster
from daybreak_operator.decision import Decision
from daybreak_operator.errors import ForeignObjectError, RefusedObjectError

RUN = TrainingRun.of(
    {
        "metadata": {
            "name": "r",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "workers": {"image": "i"},
            "data": {"streams": [{"url": "s3://d"}]},
            "recipe": {"preset": "smoke"},
            "checkpoint": {"storage": "s3://c"},
        },
    }
)
SERVICE: dict[str, Any] = {"kind": "Service", "metadata": {"name": "r-workers"}}


@asynccontextmanager
async def cluster(
    answer: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[Cluster]:
    """An API server that answers so."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        async with client.ApiClient(configuration) as api:
            yield Cluster(api)


@pytest.mark.parametrize("status", [403, 422])
@pytest.mark.parametrize(
    ("owner", "problem"),
    [
        ("u", None),
        ("another", (ForeignObjectError, "Service r-workers exists")),
        (None, (RefusedObjectError, "Service r-workers: exceeded quota: few")),
    ],
)
async def test_a_quota_that_is_used_up_refuses_nothing_that_is_there(
    status: int, owner: str | None, problem: tuple[type[Exception], str] | None
) -> None:
    """Admission comes before the name, so what exists is refused too; the run has what it needs."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            return web.json_response({"message": "exceeded quota: few"}, status=status)
        if owner is None:
            return web.json_response({}, status=404)
        owners = [{"kind": "TrainingRun", "name": "r", "uid": owner, "controller": True}]
        return web.json_response({"metadata": {"ownerReferences": owners}})

    async with cluster(answer) as api_server:
        if problem is None:
            await api_server.ensure(RUN, SERVICE)
            return
        kind, words = problem
        with pytest.raises(kind, match=words):
            await api_server.ensure(RUN, SERVICE)


@pytest.mark.parametrize("taken", [False, True])
async def test_all_that_is_refused_is_told_at_once(taken: bool) -> None:
    """Who asks for a larger quota asks once. A name that is taken comes first."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "POST":
            kind = request.path.rpartition("/")[2]
            return web.json_response({"message": f"no more {kind}"}, status=403)
        found = taken and "/services/" in request.path
        return web.json_response({"metadata": {}}, status=200 if found else 404)

    config = {"kind": "ConfigMap", "metadata": {"name": "r-recipe"}}
    decision = Decision(RUN.status, ensure=(config, SERVICE))
    async with cluster(answer) as api_server:
        with pytest.raises(ForeignObjectError if taken else RefusedObjectError) as raised:
            await act(api_server, RUN, decision)
    words = str(raised.value)
    if taken:
        assert words.startswith("Service r-workers exists")
    else:
        assert words.split("; ") == [
            "ConfigMap r-recipe: no more configmaps",
            "Service r-workers: no more services",
        ]
