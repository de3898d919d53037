"""Stands between a client and the API server and misbehaves as it is told.

Plain HTTP in front, so that a kubeconfig's `server` is all that changes: the caller's token is
passed on, and the API server judges it as ever.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Self

from aiohttp import ClientError, ClientSession, ClientTimeout, StreamReader, TCPConnector, web

from daybreak_devcluster.cluster import Cluster

_HOP_BY_HOP = frozenset(
    {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
)
_TORN_EVENT = b'{"type":"MODIFIED","object":{"apiVersion":"v1","ki'
_WRITING = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass
class Call:
    """One request, and how it was answered."""

    number: int
    """From 0."""
    method: str
    path: str
    """With the query."""
    watch: bool
    status: int = 0
    """0: nothing was answered."""
    faulty: bool = False

    @property
    def writing(self) -> bool:
        return self.method in _WRITING


@dataclass(frozen=True)
class Fault:
    """What befalls a call; without anything set, nothing does."""

    status: int | None = None
    """The answer; the API server does not hear of the call."""
    retry_after: int | None = None
    lost: bool = False
    """The call is made, and its answer does not arrive."""
    delay_seconds: float = 0.0


Chooser = Callable[[Call], Fault | None]


def nothing(_: Call) -> None:
    """Lets every call pass."""


def now_and_then(every: int, dice: Random, *faults: Fault) -> Chooser:
    """One fault for so many calls, each in its turn; which of these calls it is for, is chance."""

    def deal() -> Iterator[Fault | None]:
        for fault in itertools.cycle(faults):
            hand = [fault, *[None] * (every - 1)]
            dice.shuffle(hand)
            yield from hand

    dealt = deal()
    return lambda _: next(dealt)


@dataclass(eq=False)
class _Watch:
    """A watch that is under way."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    torn: bool = False


_NAME = re.compile(
    r"/(namespaces|trainingruns|jobs|pods|services|configmaps|networkpolicies|secrets|events"
    r"|persistentvolumeclaims)/[^/]+"
)


class ApiProxy:
    """Runs while the `with` block does, on a thread of its own."""

    def __init__(self, cluster: Cluster, chooses: Chooser = nothing) -> None:
        self.chooses = chooses
        """May be replaced at any time."""
        self.calls: list[Call] = []
        """All of them, in the order they came in."""
        self.url = ""
        self._upstream = cluster.info.server
        self._ssl = ssl.create_default_context(cafile=cluster.info.state_dir / "pki" / "ca.crt")
        self._numbers = itertools.count()
        self._watches: set[_Watch] = set()
        self._loop = asyncio.new_event_loop()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._ready, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    @property
    def never_allowed(self) -> list[str]:
        """Kinds of calls that the caller had no right to, each time that it tried: an API server
        that has just been started refuses what it allows a moment later."""
        allowed = {_kind(call.method, call.path) for call in self.calls if call.status < 400}
        refused = {_kind(call.method, call.path) for call in self.calls if call.status == 403}
        return sorted(refused - allowed)

    def drop_watches(self, *, torn: bool = False) -> None:
        """Ends every watch: as the server does when its time is over, or in the middle of an
        event."""

        def drop() -> None:
            for watch in self._watches:
                watch.torn = torn
                watch.over.set()

        self._loop.call_soon_threadsafe(drop)

    def freeze(self) -> None:
        """From now on nothing is answered and no watch says anything; connections stay open."""
        self._loop.call_soon_threadsafe(self._thawed.clear)

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._thawed.set)

    async def _run(self) -> None:
        timeout = ClientTimeout(total=None)
        connector = TCPConnector(ssl=self._ssl, limit=0)
        async with ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False
        ) as session:
            self._session = session
            app = web.Application(client_max_size=1 << 24)
            app.router.add_route("*", "/{path:.*}", self._pass)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._over.wait()
            self._thawed.set()
            for watch in self._watches:
                watch.over.set()
            await runner.cleanup()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.25)  # until the connections to the server are closed: TLS takes turns

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        watch = request.query.get("watch", "").lower() in ("1", "true")
        call = Call(next(self._numbers), request.method, request.path_qs, watch)
        self.calls.append(call)
        await self._thawed.wait()
        fault = self.chooses(call) or Fault()
        call.faulty = fault != Fault()
        await asyncio.sleep(fault.delay_seconds)
        if fault.status is not None:
            call.status = fault.status
            return _refusal(fault)
        try:
            return await self._forward(request, call, fault)
        except (ClientError, OSError):  # the API server is away
            return _cut(request)

    async def _forward(self, request: web.Request, call: Call, fault: Fault) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            headers=headers,
            data=await request.read() or None,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            if fault.lost:
                return _cut(request)
            if not call.watch:
                body = await answer.read()
                await self._thawed.wait()
                call.status = answer.status
                return web.Response(status=answer.status, headers=kept, body=body)
            call.status = answer.status
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            watch = _Watch()
            self._watches.add(watch)
            try:
                await self._stream(answer.content, response, watch)
                if watch.torn:
                    await response.write(_TORN_EVENT)
                    return _cut(request, response)
            finally:
                self._watches.discard(watch)
            with suppress(ConnectionError):
                await response.write_eof()
            return response

    async def _stream(
        self, content: StreamReader, response: web.StreamResponse, watch: _Watch
    ) -> None:
        """Whole events, until the server ends the watch, or we do."""
        over = asyncio.ensure_future(watch.over.wait())
        chunk: asyncio.Future[bytes] | None = None
        begun = b""
        try:
            while True:
                chunk = asyncio.ensure_future(content.readany())
                await asyncio.wait({over, chunk}, return_when=asyncio.FIRST_COMPLETED)
                if over.done():
                    return
                if not (data := await chunk):
                    return
                await self._thawed.wait()
                events, end, begun = (begun + data).rpartition(b"\n")
                if end:
                    await response.write(events + end)
        except ConnectionError:  # the client is gone
            return
        finally:
            over.cancel()
            if chunk is not None and not chunk.done():
                chunk.cancel()


def _refusal(fault: Fault) -> web.Response:
    reasons = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError"}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reasons.get(fault.status or 0, "Unknown"),
        "message": "on purpose",
        "code": fault.status,
    }
    headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
    return web.json_response(body, status=fault.status or 500, headers=headers, dumps=json.dumps)


def _cut(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Breaks the connection; the answer, if any, ends where it is."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=502)


def _kind(method: str, path: str) -> str:
    """A call without the names of objects and without its query."""
    kind = _NAME.sub(r"/\1/*", path.partition("?")[0])
    return f"{method} {kind}"
