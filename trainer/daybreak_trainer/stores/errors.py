"""What can go wrong with a store, and which of it passes by itself.

fsspec's file systems raise what their libraries raise. S3's own error code is in the `response` of
a botocore error somewhere in the chain of causes; s3fs turns the error itself into an OSError. Our
own file system for Cloud Storage raises `AnswerError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from http import HTTPStatus

import aiohttp
import botocore.exceptions as boto  # type: ignore[import-untyped]


class StorageError(Exception):
    """The store fails or cannot be reached; the message names the URL and what it said."""


class StorageRefusedError(StorageError):
    """The store refuses because something is set wrongly; trying again would end the same way."""


class AnswerError(Exception):
    """A store's answer that says no: its code (or the status, where it has none), HTTP status and
    text."""

    def __init__(self, code: str, status: int, text: str) -> None:
        super().__init__(code, status, text)  # all of them: it goes from rank to rank
        self.code, self.status, self.text = code, status, text

    def __str__(self) -> str:
        return self.text


NO_BUCKET, NO_UPLOAD = "NoSuchBucket", "NoSuchUpload"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MOST_LETTERS = 400
_PASSING_CODES = frozenset(
    {
        "BadDigest",  # damaged on its way
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "XAmzContentSHA256Mismatch",
        "rateLimitExceeded",  # Cloud Storage's, also with status 403
        "userRateLimitExceeded",
    }
)
_PASSING_STATUS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_PASSING_ERRORS = (
    ConnectionError,
    TimeoutError,
    aiohttp.ClientError,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
)
_LASTING_ERRORS = (boto.SSLError, aiohttp.ClientSSLError, aiohttp.InvalidURL)
"""Of those, the ones that do not pass: a certificate stays untrusted."""
_PASSING_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EHOSTUNREACH,
        errno.EIO,  # also a network file system that gave up for now
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def answer(error: BaseException) -> tuple[str, int] | None:
    """A bucket's error code and HTTP status; None where the error is no answer of its server."""
    for link in _chain(error):
        if isinstance(link, AnswerError):
            return link.code, link.status
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return code, int(status)
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: throttling, a server's own failure, a
    lost or silent connection. Never what the store refuses or does not have."""
    if (answered := answer(error)) is not None:
        code, status = answered
        return (
            code in _PASSING_CODES
            or status in _PASSING_STATUS
            or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED)
        )
    if isinstance(error, _LASTING_ERRORS):
        return False
    if isinstance(error, _PASSING_ERRORS):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNO


def is_missing(error: BaseException) -> bool:
    """Whether there is no such file, in a store that is there."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError):
        return False
    answered = answer(error)
    return answered is None or answered[0] not in (NO_BUCKET, NO_UPLOAD)


def is_upload_gone(error: BaseException) -> bool:
    """Whether the store does not know an upload: it was completed, or aborted."""
    answered = answer(error)
    return answered is not None and answered[0] == NO_UPLOAD


def said(error: BaseException) -> str:
    """What the store said, in one line: its code where it has one, never an empty text."""
    text = next((line for link in _chain(error) if (line := " ".join(str(link).split()))), "")
    if (answered := answer(error)) is not None:
        code, status = answered
        text = _short(text)  # a proxy's may be a whole page
        return f"{code}: {text}" if not code.isdecimal() else f"{text} (HTTP {status})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # botocore: which of the ways a connection can fail
    inner = str(getattr(error, "kwargs", {}).get("error", ""))
    if inner not in text:
        text += f" ({inner})"
    text = _short(text)
    if isinstance(error, StorageError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
