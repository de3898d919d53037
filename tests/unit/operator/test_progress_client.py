"""Asking worker 0 how far it is."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web

from daybreak_operator.progress import ProgressClient
from daybreak_trainer.contract import HTTP_PORT

ADDRESS = f"127.48.{os.getpid() % 256}.9"


async def test_a_worker_that_lets_us_wait_is_left_alone_for_a_while() -> None:
    """Else a few hundred that do not answer would hold up the looks at all others."""
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(5)
        return web.Response()

    app = web.Application()
    app.router.add_get("/progress", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, ADDRESS, HTTP_PORT).start()
    asker = ProgressClient(seconds=0.2)
    try:
        assert [await asker.ask(ADDRESS) for _ in range(5)] == [None] * 5
    finally:
        await asker.close()
        await runner.cleanup()
    assert asked == 1
