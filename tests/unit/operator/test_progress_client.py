"""Asking worker 0 how far it is."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest
from aiohttp import web

from daybreak_operator.progress import ProgressClient
from daybreak_trainer.contract import HTTP_PORT

ADDRESS = f"127.48.{os.getpid() % 256}.9"


async def test_a_worker_that_lets_us_wait_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a few hundred that do not answer would hold up the looks at all others."""
    # However long the machine takes for the test, the while is not over.
    monkeypatch.setattr("daybreak_operator.progress.time", SimpleNamespace(monotonic=lambda: 1e3))
    asked = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.router.add_get("/progress", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, ADDRESS, HTTP_PORT).start()
    asker = ProgressClient(seconds=2.0)
    try:
        assert [await asker.ask(ADDRESS) for _ in range(5)] == [None] * 5
    finally:
        await asker.close()
        await runner.cleanup()
    assert asked == 1
