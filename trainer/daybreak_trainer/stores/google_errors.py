"""What requests, urllib3 and google-auth raise, as Python's own errors and `AnswerError`."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import google.auth.exceptions as auth_errors
import requests
import urllib3.exceptions as urllib3_errors
from google.auth.credentials import Credentials

from daybreak_trainer.stores.errors import AnswerError
from daybreak_trainer.stores.patience import Patience

_TLS_ENDED = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)
"""The connection broke, which says nothing of certificates."""


@contextmanager
def plain_errors(
    method: str, patience: Patience, credentials: Credentials | None
) -> Iterator[None]:
    """Raises ConnectionError and TimeoutError for what may pass, ssl.SSLError and AnswerError else.

    Without the error below: its text may hold the address of an upload, which opens it to anyone.
    """
    try:
        yield
    except requests.exceptions.SSLError as error:
        kind = ConnectionError if isinstance(_innermost(error), _TLS_ENDED) else ssl.SSLError
        raise kind(_reason(error)) from None
    except requests.exceptions.ConnectTimeout:
        raise TimeoutError(f"no connection within {patience.connect_seconds:g} s") from None
    except (requests.Timeout, urllib3_errors.TimeoutError):
        text = f"no answer to {method} within {patience.silence_seconds:g} s"
        raise TimeoutError(text) from None
    except (requests.RequestException, urllib3_errors.HTTPError) as error:
        raise ConnectionError(_reason(error)) from None
    except auth_errors.GoogleAuthError as error:
        if _may_pass(error, credentials):
            raise ConnectionError(f"no access token: {_reason(error)}") from None
        raise AnswerError(type(error).__name__, HTTPStatus.UNAUTHORIZED, _reason(error)) from None


def _may_pass(error: auth_errors.GoogleAuthError, credentials: Credentials | None) -> bool:
    """Credentials that have given a token are good; and a metadata server that does not answer,
    as in a pod's first seconds, comes wrapped in an error that says it is final."""
    if error.retryable or isinstance(error, auth_errors.TransportError):
        return True
    if credentials is not None and credentials.token is not None:
        return True
    cause = error.__cause__
    has_answer = len(getattr(cause, "args", ())) > 1
    return isinstance(cause, auth_errors.TransportError) and not has_answer


def _innermost(error: BaseException) -> BaseException:
    """Around it are the names of connection pools."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def _reason(error: BaseException) -> str:
    inner = _innermost(error)
    if isinstance(inner, auth_errors.GoogleAuthError) and inner.args:
        return str(inner.args[0])  # the others are the whole answer
    return str(inner)


def refusal(status: int, body: bytes) -> AnswerError:
    """What the JSON API says, or the text of what is not JSON."""
    code, text = str(status), body.decode(errors="replace")
    try:
        error = json.loads(body)["error"]
        text = str(error["message"])
        code = str(error["errors"][0]["reason"])
    except (ValueError, LookupError, TypeError):
        pass  # a download's refusal is plain text, and a proxy says what it likes
    return AnswerError(code, status, text.strip() or f"it answered with status {status}")
