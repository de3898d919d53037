"""kopf wiring and nothing else: watches fill the cache and wake the controller.

Only `on.event` is used, so kopf writes nothing into any object.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import kopf
from aiohttp import web
from kubernetes.aio import client, config
from prometheus_client import generate_latest

from daybreak_operator.api.run import GROUP, PLURAL, VERSION
from daybreak_operator.cache import Cache
from daybreak_operator.cluster import Cluster
from daybreak_operator.controller import Controller
from daybreak_operator.observe import Observer
from daybreak_operator.progress import ProgressClient
from daybreak_trainer.contract import LABEL_RUN


@dataclass
class Running:
    """What start-up makes and clean-up ends."""

    controller: Controller
    progress: ProgressClient
    api: client.ApiClient
    http: web.AppRunner


def registry(http_host: str, http_port: int) -> kopf.OperatorRegistry:
    """All handlers of the operator; kopf's runner takes them from here."""
    handlers = kopf.OperatorRegistry()
    cache = Cache()
    running: list[Running] = []

    @kopf.on.startup(registry=handlers)
    async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 270
        settings.watching.client_timeout = 300
        running.append(await _start(cache, http_host, http_port))

    @kopf.on.cleanup(registry=handlers)
    async def cleanup(**_: Any) -> None:
        for part in running:
            await part.controller.stop()
            await part.progress.close()
            await part.http.cleanup()
            await part.api.close()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> Any:
        return kopf.login_via_client(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def run_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002
        key = cache.run_event(type, dict(body))
        running[0].controller.enqueue(key)

    def child(kind: str) -> Any:
        async def child_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002
            if (key := cache.child_event(kind, type, dict(body))) is not None:
                running[0].controller.enqueue(key)

        return child_event

    labelled = {LABEL_RUN: kopf.PRESENT}
    kopf.on.event("batch", "v1", "jobs", labels=labelled, registry=handlers)(child("Job"))
    kopf.on.event("", "v1", "pods", labels=labelled, registry=handlers)(child("Pod"))
    return handlers


async def _start(cache: Cache, http_host: str, http_port: int) -> Running:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    api = client.ApiClient()
    cluster, progress = Cluster(api), ProgressClient()
    controller = Controller(cache, cluster, Observer(cache, cluster, progress))
    controller.start()
    return Running(controller, progress, api, await _serve(http_host, http_port))


async def _serve(host: str, port: int) -> web.AppRunner:
    """`/healthz`, which also shows that the event loop runs, and `/metrics`."""

    async def healthz(_: web.Request) -> web.Response:
        await asyncio.sleep(0)
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
