"""An API server that will not have an object."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cluster import Cluster
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

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        async with client.ApiClient(configuration) as api:
            if problem is None:
                await Cluster(api).ensure(RUN, SERVICE)
                return
            kind, words = problem
            with pytest.raises(kind, match=words):
                await Cluster(api).ensure(RUN, SERVICE)
