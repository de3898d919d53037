"""A client of the API server that counts its requests, and writes only while it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator import metrics
from daybreak_operator.leader import NotLeadingError

_READS = frozenset({"GET", "HEAD"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class GuardedClient(client.ApiClient):  # type: ignore[misc]  # the library has no types
    """Every request of the library's API classes goes through `call_api`, so no write can pass by.

    `until` is the time of the event loop up to which this process may write, None for always. A
    write that is under way then is given up: the API server drops a request whose client has gone.
    Raises NotLeadingError.
    """

    def __init__(
        self,
        until: Callable[[], float] | None = None,
        configuration: client.Configuration | None = None,
    ) -> None:
        configuration = configuration or client.Configuration.get_default_copy()
        # For proxies alone: else each request waits for a thread that looks for a netrc file.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        super().__init__(configuration)
        self._until = until

    async def call_api(self, method: str, url: str, *rest: Any, **more: Any) -> Any:
        code = "none"
        try:
            async with asyncio.timeout_at(self._limit(method)):
                answer = await super().call_api(method, url, *rest, **more)
            code = str(answer.status)
        except ApiException as error:
            code = str(error.status)
            raise
        except NotLeadingError:
            code = "refused here"
            raise
        finally:
            count(method, url, code)
        return answer

    def _limit(self, method: str) -> float | None:
        if method in _READS or self._until is None:
            return None
        until = self._until()
        if asyncio.get_running_loop().time() >= until:
            raise NotLeadingError(f"{method} was not sent: this operator does not lead")
        return until


def count(method: str, url: str, code: str) -> None:
    """One request, by what RBAC calls its verb and resource; `code` is `none` without an answer."""
    verb, resource = _asked(method, url)
    metrics.API_REQUESTS.labels(verb, resource, code).inc()


def _asked(method: str, url: str) -> tuple[str, str]:
    """`/api/v1/namespaces/n/pods/p` → get, pods; `.../trainingruns/r/status` → trainingruns/status.
    What asks for no object, such as discovery, is `other`."""
    split = urlsplit(url)
    parts = split.path.strip("/").split("/")
    start = next((n for n, part in enumerate(parts) if part in ("api", "apis")), len(parts))
    parts = parts[start + (2 if parts[start:][:1] == ["api"] else 3) :]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    if not parts:
        return method.lower(), "other"
    resource = "/".join(parts[::2][:2])
    if method not in _READS:
        return _VERBS.get(method, method.lower()), resource
    if len(parts) > 1:
        return "get", resource
    return "watch" if "watch=true" in split.query else "list", resource
