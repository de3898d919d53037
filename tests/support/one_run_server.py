"""A small API server over HTTP with one run, its Job and its pod, and a controller before it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from daybreak_operator.cache import Cache
from daybreak_operator.cluster import Cluster
from daybreak_operator.controller import Controller
from daybreak_operator.observe import Observer
from daybreak_operator.pace import PROGRESS_SECONDS
from daybreak_operator.progress import ProgressClient
from daybreak_trainer.contract import HTTP_PORT

KEY = ("n", "r")
POD_IP = f"127.47.{os.getpid() % 256}.9"
"""Not that of another who runs these tests now."""
LABELS = {"daybreak.dev/run": "r", "daybreak.dev/attempt": "1"}
INDEX = "batch.kubernetes.io/job-completion-index"
OWNER = {"apiVersion": "daybreak.dev/v1alpha1", "kind": "TrainingRun", "name": "r"}
RUN: dict[str, Any] = {
    "metadata": {
        "name": "r",
        "namespace": "n",
        "uid": "u",
        "generation": 1,
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    },
    "spec": {
        "workers": {"image": "i", "nodes": 1},
        "data": {"streams": [{"url": "s3://d"}]},
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
        "failurePolicy": {"backoff": {"initial": "0s"}},
    },
    "status": {
        "phase": "Running",
        "attempt": 1,
        "workers": {"desired": 1, "ready": 1, "selector": "daybreak.dev/run=r"},
        "currentAttempt": {
            "number": 1,
            "nodes": 1,
            "createdTime": "2026-01-01T00:00:00Z",
            "admittedTime": "2026-01-01T00:00:01Z",
            "firstStepTime": "2026-01-01T00:00:02Z",
        },
    },
}
JOB: dict[str, Any] = {
    "metadata": {
        "name": "r-1",
        "namespace": "n",
        "uid": "job",
        "labels": LABELS,
        "ownerReferences": [OWNER | {"uid": "u", "controller": True}],
    },
    "spec": {
        "parallelism": 1,
        "template": {"spec": {"containers": [{"name": "trainer", "image": "i"}]}},
    },
}
POD: dict[str, Any] = {
    "metadata": {
        "name": "r-1-0",
        "namespace": "n",
        "uid": "pod",
        "labels": LABELS | {INDEX: "0"},
        "ownerReferences": [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": "r-1",
                "uid": "job",
                "controller": True,
            }
        ],
    },
    "spec": {"containers": [{"name": "trainer", "image": "i"}]},
    "status": {"phase": "Running", "podIP": POD_IP},
}


@dataclass
class Server:
    """What an API server holds, what was written to it, and how often worker 0 was asked."""

    jobs: list[dict[str, Any]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    """That are listed."""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    writes: list[tuple[str, str, Any]] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    asked: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    refusal: str | None = None
    """What it says to every new Job."""
    refusal_status: int = 422
    event_refusal: int | None = None
    status_refusals: list[int] = field(default_factory=list)
    """Of the next writes of a status."""
    run: dict[str, Any] = field(default_factory=lambda: RUN)
    """That a PATCH changes."""
    no_run: dict[str, Any] | None = None
    """The words of a 404."""
    keeps: str | None = None
    """Name of an object that it does not let go."""
    seconds: float = 0.0
    """How long a write takes."""
    version: str = "7"
    """Of the run."""
    on_status: Callable[[], None] = lambda: None
    """Happens while a status is being written."""

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/progress":
            self.asked.put_nowait(asyncio.get_running_loop().time())
            return web.Response(status=404)
        if request.method != "GET":
            body = await request.json() if request.can_read_body else None
            if request.method == "POST" and request.path.endswith("/jobs") and self.refusal:
                return web.json_response({"message": self.refusal}, status=self.refusal_status)
            if request.path.endswith("/events") and self.event_refusal is not None:
                message = {"message": "exceeded quota: few-events"}
                return web.json_response(message, status=self.event_refusal)
            if request.path.endswith("/status") and self.status_refusals:
                message = {"message": "on purpose"}
                return web.json_response(message, status=self.status_refusals.pop())
            if request.method == "DELETE" and "/trainingruns/" in request.path:
                return web.json_response(self.no_run, status=404)
            if request.method == "DELETE" and self.keeps in request.path.split("/"):
                return web.json_response({"message": "forbidden"}, status=403)
            if request.method == "DELETE" and not self._deleted(request.path, body):
                return web.json_response({"message": "the UID is another"}, status=409)
            self.writes.append((request.method, request.path, body))
            await asyncio.sleep(self.seconds)
            if request.path.endswith("/status") and self.no_run is not None:
                return web.json_response(self.no_run, status=404)
            if request.path.endswith("/status"):
                self.on_status()
                version = {"resourceVersion": self.version}
                patched = self.run["status"] if request.method == "PATCH" else {}
                metadata = self.run["metadata"] | version
                status = patched | body["status"]
                return web.json_response(self.run | {"metadata": metadata, "status": status})
            return web.json_response(body)
        self.reads.append(request.path)
        name = request.path.rpartition("/")[2]
        if "/configmaps/" in request.path:
            found = self.configs.get(name)
            return web.json_response(found or {}, status=200 if found else 404)
        if "/jobs/" in request.path:
            return web.json_response({}, status=404)
        if "/trainingruns/" in request.path:
            metadata = RUN["metadata"] | {"resourceVersion": self.version}
            return web.json_response(RUN | {"metadata": metadata})
        kinds = {"jobs": self.jobs, "pods": self.pods, "nodes": self.nodes}
        found = (kinds | {"trainingruns": self.runs})[name]
        return web.json_response({"items": found, "metadata": {}})

    def _deleted(self, path: str, options: dict[str, Any]) -> bool:
        """Takes an object away if its UID is the wanted one."""
        *_, kind, name = path.split("/")
        bodies = {"jobs": self.jobs, "pods": self.pods}[kind]
        uid = options.get("preconditions", {}).get("uid")
        found = [b for b in bodies if b["metadata"]["name"] == name]
        gone = [b for b in found if uid in (None, b["metadata"]["uid"])]
        bodies[:] = [body for body in bodies if body not in gone]
        return bool(gone)

    def statuses(self) -> list[dict[str, Any]]:
        return [body["status"] for method, _, body in self.writes if method == "PUT"]

    def written(self) -> list[str]:
        """What each write was for."""
        return [path.rpartition("/")[2] for _, path, _ in self.writes]


@asynccontextmanager
async def api_server(server: Server) -> AsyncIterator[Cluster]:
    """What the operator sees of it. It answers as worker 0, too."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    await web.TCPSite(runner, POD_IP, HTTP_PORT).start()
    (address, *_) = runner.addresses
    configuration = client.Configuration(host=f"http://127.0.0.1:{address[1]}")
    try:
        async with client.ApiClient(configuration) as api:
            yield Cluster(api)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(
    server: Server,
    cache: Cache,
    monotonic: Callable[[], float] = time.monotonic,
    progress_seconds: float = PROGRESS_SECONDS,
) -> AsyncIterator[Controller]:
    """A controller, not started, whose API server and worker 0 are `server`."""
    progress = ProgressClient()
    try:
        async with api_server(server) as cluster:
            observer = Observer(cache, cluster, progress, monotonic=monotonic)
            controller = Controller(cache, cluster, observer, progress_seconds)
            yield controller
            await controller.stop()
    finally:
        await progress.close()


def changed(body: dict[str, Any], **status: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(body))
    changed["status"] = changed.get("status", {}) | status
    return changed


def ended(pod: dict[str, Any], code: int, second: int) -> dict[str, Any]:
    state = {"exitCode": code, "finishedAt": f"2026-01-01T00:00:{second:02}Z"}
    container = {
        **{"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0},
        "state": {"terminated": state},
    }
    return changed(pod, phase="Failed", containerStatuses=[container])


def between_attempts(recipe_hash: str) -> Cache:
    """A run whose second attempt is on record and has no Job yet."""
    attempt = RUN["status"]["currentAttempt"] | {"number": 2}
    cache, run = Cache(), changed(RUN, attempt=2, recipeHash=recipe_hash, currentAttempt=attempt)
    del run["status"]["workers"]
    cache.run_event(None, run)
    return cache
