"""Requests to Cloud Storage's JSON API: with credentials, each within bounded time, repeated while
their trouble may pass, and with errors of few classes."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import google.auth
import requests
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from requests.adapters import HTTPAdapter
from tenacity import Retrying

from daybreak_trainer.stores.google_credentials import SCOPES, credentials_of
from daybreak_trainer.stores.google_errors import plain_errors, refusal
from daybreak_trainer.stores.patience import Patience

ENDPOINT = "https://storage.googleapis.com"
_CONNECTIONS = 64
"""Kept open: as many as downloads, or files that are removed at once."""
_CHUNK_BYTES = 1 << 20
_GOOD = (*range(200, 300), HTTPStatus.PERMANENT_REDIRECT)
"""308 is the answer to a part of an upload that is not the last."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class _Body(io.BytesIO):
    """Is sent piece by piece, and for a limited time: nothing below limits the sending to a server
    that reads slowly."""

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._ends, self._seconds = time.monotonic() + seconds, seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._ends:
            raise TimeoutError(f"the body could not be sent within {self._seconds:g} s")
        return super().read(size)


class _Adapter(HTTPAdapter):
    def __init__(self, patience: Patience) -> None:
        super().__init__(pool_connections=4, pool_maxsize=_CONNECTIONS)
        self._patience = patience

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request.body, bytes) and request.body:
            limit = self._patience.request_seconds(len(request.body))
            request.body = _Body(request.body, limit - self._patience.silence_seconds)
        return super().send(request, *args, **kwargs)


class GoogleSession:
    """Safe to use from several threads."""

    def __init__(
        self,
        endpoint: str,
        token: Mapping[str, Any] | str | None,
        payer: str | None,
        patience: Patience,
    ) -> None:
        """`token`: credentials as `options_for` gives them, None for the pod's own; `payer`: the
        project that pays for requests, where that is not the bucket's.

        Raises ValueError where the credentials make no sense. Connects to nothing.
        """
        self.endpoint, self.patience, self._payer = endpoint, patience, payer
        self._credentials = credentials_of(token)
        self._authorized: AuthorizedSession | None = None
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The answer to a request, which is repeated as long as patience lasts.

        Raises:
            AnswerError: the store says no, or there are no credentials.
            ConnectionError, TimeoutError, ssl.SSLError: there is no answer.
        """
        policy = self.patience.policy(method, lambda: url)
        return Retrying(**policy)(lambda: self.once(method, url, params, body, headers))

    def once(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """As `call`, without repeating."""
        patience = self.patience
        wanted = {"Accept-Encoding": "gzip"} | dict(headers or {})
        if self._payer is not None:
            wanted["x-goog-user-project"] = self._payer
        with plain_errors(method, patience, self._credentials):
            response = self._session().request(  # type: ignore[no-untyped-call]
                method,
                url,
                params=params,
                data=body,
                headers=wanted,
                timeout=(patience.connect_seconds, patience.silence_seconds),
                stream=True,
                allow_redirects=False,
            )
            is_good = response.status_code in _GOOD
            # An object that is stored compressed stays so; what the API itself says may be too.
            as_stored = is_good and (params or {}).get("alt") == "media"
            with response:
                content = self._content(response, decode=not as_stored)
        if not is_good:
            raise refusal(response.status_code, content)
        return Reply(response.status_code, response.headers, content)

    def _session(self) -> AuthorizedSession:
        with self._lock:
            if self._authorized is None:
                if self._credentials is None:
                    self._credentials, _ = google.auth.default(scopes=SCOPES)
                renewals = 0 if isinstance(self._credentials, AnonymousCredentials) else 1
                session = AuthorizedSession(  # type: ignore[no-untyped-call]
                    self._credentials, max_refresh_attempts=renewals
                )
                session.mount("https://", _Adapter(self.patience))
                session.mount("http://", _Adapter(self.patience))
                self._authorized = session
            return self._authorized

    def _content(self, response: requests.Response, decode: bool) -> bytes:
        """An answer that is given up is not received any longer: it would slow down the next."""
        limit = self.patience.answer_seconds
        ends = None if limit is None else time.monotonic() + limit
        content = bytearray()
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=decode):
            content += chunk
            if ends is not None and time.monotonic() > ends:
                raise TimeoutError(f"the answer was not complete within {limit:g} s")
        return bytes(content)
