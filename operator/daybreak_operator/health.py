"""What the operator says of itself over HTTP: `/healthz`, `/readyz` and `/metrics`.

Not healthy means that a new process would do better, and the kubelet starts one: a watch or the
election whose task is dead, or a queue that stands still. An API server that is away is no such
case. Not ready means that a rollout has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from daybreak_operator.leader import Elector
from daybreak_operator.watches import Watches
from daybreak_operator.workqueue import WorkQueue

_MAX_QUEUE_SECONDS = 300.0
_MAX_LOOK_SECONDS = 180.0
_MAX_ELECTION_SECONDS = 60.0
Check = Callable[[], list[str]]


def problems(queue: WorkQueue[tuple[str, str]], watches: Watches, elector: Elector | None) -> Check:
    """A check that gives a sentence for each thing that only a new process can mend."""

    def check() -> list[str]:
        found = [f"nobody watches {path}" for path in watches.dead()]
        if (age := queue.oldest_seconds()) > _MAX_QUEUE_SECONDS:
            found.append(f"a run has been waiting to be looked at for {age:.0f} s")
        if (age := queue.longest_look_seconds()) > _MAX_LOOK_SECONDS:
            found.append(f"a run has been looked at for {age:.0f} s")
        if elector is not None:
            age = asyncio.get_running_loop().time() - elector.attempted_at
            if age > _MAX_ELECTION_SECONDS:
                found.append(f"the Lease has not been asked for for {age:.0f} s")
        return found

    return check


def unready(watches: Watches) -> Check:
    """A check that gives a sentence for each first list that is not in yet."""
    return lambda: [f"the list of {path} is not in" for path in watches.unlisted()]


async def serve(host: str, port: int, healthy: Check, ready: Check) -> web.AppRunner:
    """The server; to be cleaned up by the caller."""

    def page(check: Check) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            found = check()
            text = "\n".join(found or ["ok"]) + "\n"
            return web.Response(text=text, status=503 if found else 200)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", page(healthy)),
            web.get("/readyz", page(ready)),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
