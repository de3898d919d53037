"""A small client of the Kubernetes API: JSON in, JSON out.

The agent handles pods as the JSON that the API server sends. The generated client takes longer to
import than a pod takes to start here, and its models drop fields that it does not know.
"""

import asyncio
import base64
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
_RETRY_SECONDS = 0.3
_REQUEST_SECONDS = 30.0
_log = logging.getLogger(__name__)

Unreachable = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One connection pool to one API server. Use as an asynchronous context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        self.server: str = cluster["server"]
        self.authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        certificate = base64.b64decode(user["client-certificate-data"])
        key = base64.b64decode(user["client-key-data"])
        self._context = ssl.create_default_context(cadata=self.authority)
        _load_pair(self._context, certificate + b"\n" + key)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            base_url=self.server,
            connector=aiohttp.TCPConnector(ssl=self._context, limit=0),
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        """GET. Raises `ApiError`, or one of `Unreachable`."""
        return await self._request("GET", path, params=params)

    async def post(self, path: str, body: Json) -> Json:
        """POST. Raises as `get` does."""
        return await self._request("POST", path, body)

    async def put(self, path: str, body: Json) -> Json:
        """PUT. Raises as `get` does."""
        return await self._request("PUT", path, body)

    async def patch(self, path: str, body: Json, kind: str = MERGE) -> Json:
        """PATCH with a merge or strategic merge patch. Raises as `get` does."""
        return await self._request("PATCH", path, body, kind)

    async def delete(self, path: str, body: Json | None = None) -> Json:
        """DELETE. Raises as `get` does."""
        return await self._request("DELETE", path, body)

    async def watch(self, path: str) -> AsyncIterator[tuple[str, Json]]:
        """List, then watch for ever; a server that is away for a while is waited for.

        Yields `("LISTED", list)` after each list, which replaces all that was known, and then
        `("ADDED" | "MODIFIED" | "DELETED", object)`.
        """
        version: str | None = None
        while True:
            try:
                if version is None:
                    listed = await self.get(path)
                    version = listed["metadata"]["resourceVersion"]
                    yield "LISTED", listed
                async for kind, thing in self._stream(path, version):
                    if kind == "ERROR":  # most likely: this version is too old by now
                        version = None
                        break
                    version = thing["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        yield kind, thing
            except ApiError as error:
                _log.warning("watch %s: %s", path, error)
                version = None
                await asyncio.sleep(_RETRY_SECONDS)
            except Unreachable as error:
                _log.warning("watch %s: %r", path, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _stream(self, path: str, version: str) -> AsyncIterator[tuple[str, Json]]:
        assert self._session is not None
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": "240",
        }
        limit = aiohttp.ClientTimeout(total=None, sock_read=300)
        async with self._session.get(path, params=params, timeout=limit) as response:
            if response.status >= 400:
                raise ApiError(response.status, await response.text())
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]

    async def _request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
    ) -> Json:
        assert self._session is not None
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": content_type}
        async with self._session.request(
            method, path, data=data, headers=headers, params=params
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise ApiError(response.status, _message(text))
            answer: Json = json.loads(text)
            return answer


async def persistently(call: Callable[[], Awaitable[Json]]) -> Json:
    """Repeat a call until the server answers it; raises `ApiError` where the answer is no.

    Server errors and "too many requests" count as no answer.
    """
    while True:
        try:
            return await call()
        except ApiError as error:
            if error.status < 500 and error.status != 429:
                raise
            _log.warning("retrying: %s", error)
        except Unreachable as error:
            _log.warning("retrying: %r", error)
        await asyncio.sleep(_RETRY_SECONDS)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:500]


def _load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """Python's ssl reads certificates from files only; this one is never on a disk."""
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
