"""Whether kopf's watches live, and whether their first lists are in.

kopf tells its users neither. Both can be seen from its HTTP requests, which go through a session
that we make (kopf's `AiohttpSession` credentials) and trace (aiohttp's `TraceConfig`): kopf begins
to watch a kind only when the whole list of it has been handed on; and a watch lasts
`SERVER_TIMEOUT_SECONDS` at most (a silent one 70 s, kopf's `inactivity_timeout`, for bookmarks come
every minute), so one that lives asks again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import SimpleNamespace

import aiohttp
import kopf

from daybreak_operator.api.run import GROUP, PLURAL, VERSION
from daybreak_operator.connection import count

SERVER_TIMEOUT_SECONDS = 120
"""After which the API server ends a watch."""
SLACK_SECONDS = 120.0
"""For the longest pause between two tries and for a list of everything."""
_KINDS = {
    PLURAL: f"/apis/{GROUP}/{VERSION}",
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
}


class Watches:
    """Those of all kinds, in the given namespaces; in all of them where none are given."""

    def __init__(
        self, namespaces: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        places = [f"/namespaces/{namespace}" for namespace in namespaces] or [""]
        self._clock = clock
        self._asked: dict[tuple[str, str], float] = {
            (kind, f"{base}{place}/{kind}"): clock()
            for kind, base in _KINDS.items()
            for place in places
        }
        """Kind and path of each watch: when it was last asked for."""
        self._connected = dict(self._asked)
        self._unlisted = set(self._asked)
        self.kinds = tuple(_KINDS)

    def unlisted(self) -> list[str]:
        """The paths whose first list is not in yet."""
        return sorted(path for _, path in self._unlisted)

    def dead(self) -> list[str]:
        """The paths that nobody watches any more. One that asks in vain is not dead: a new process
        would not fare better."""
        limit = self._clock() - SERVER_TIMEOUT_SECONDS - SLACK_SECONDS
        return sorted(path for (_, path), asked in self._asked.items() if asked < limit)

    def age_seconds(self, kind: str) -> float:
        """Time since the oldest watch of a kind connected."""
        return self._clock() - min(at for (k, _), at in self._connected.items() if k == kind)

    def asked(self, path: str, query: str) -> None:
        """A request is being sent; all of kopf's are told."""
        if (watch := self._named(path)) is not None:
            self._asked[watch] = self._clock()
            if "watch=true" in query:
                self._unlisted.discard(watch)

    def answered(self, path: str, query: str, status: int) -> None:
        if status == 200 and "watch=true" in query and (watch := self._named(path)) is not None:
            self._connected[watch] = self._clock()

    def _named(self, path: str) -> tuple[str, str] | None:
        """An API server may be reached through a proxy, below a path of its own."""
        return next((watch for watch in self._asked if path.endswith(watch[1])), None)

    def session(self, credentials: kopf.ConnectionInfo) -> kopf.AiohttpSession:
        """kopf's own session, traced."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._on_start)
        trace.on_request_end.append(self._on_end)
        trace.on_request_exception.append(self._on_exception)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=credentials.as_ssl_context()),
            headers=credentials.as_http_headers(),
            trust_env=credentials.trust_env,
            trace_configs=[trace],
        )
        return kopf.AiohttpSession(server=credentials.server, aiohttp_session=session)

    async def _on_start(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestStartParams
    ) -> None:
        self.asked(told.url.path, told.url.query_string)

    async def _on_end(
        self, _: aiohttp.ClientSession, __: SimpleNamespace, told: aiohttp.TraceRequestEndParams
    ) -> None:
        count(told.method, str(told.url), str(told.response.status))
        self.answered(told.url.path, told.url.query_string, told.response.status)

    async def _on_exception(
        self,
        _: aiohttp.ClientSession,
        __: SimpleNamespace,
        told: aiohttp.TraceRequestExceptionParams,
    ) -> None:
        count(told.method, str(told.url), "none")
