"""What the API server's refusals mean for a run."""

from __future__ import annotations

import json

from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.api.run import PLURAL

_MAX_SAID = 1024


class ConflictError(Exception):
    """The object changed since it was read; look again."""


class GoneError(ConflictError):
    """It does not exist any more."""


class ForeignObjectError(Exception):
    """An object with a child's name that is not ours; the message names it."""


class RefusedObjectError(Exception):
    """The API server, or something that it asks, will not have an object as it is; the message says
    which and why."""


def changed(error: ApiException, name: str) -> Exception:
    """What an error says of the run of that name. A 404 may as well be of an API server that does
    not serve the CRD yet: only one that names the object means that it does not exist."""
    if error.status == 409:
        return ConflictError()
    try:
        details = json.loads(error.body or "").get("details") or {}
        gone = (error.status, details.get("name"), details.get("kind")) == (404, name, PLURAL)
    except (ValueError, AttributeError):
        gone = False
    meant: Exception = GoneError() if gone else error
    return meant


def said(error: ApiException) -> str:
    """The API server's own words."""
    try:
        text = str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        text = f"{error.status} {error.reason}"
    return text[:_MAX_SAID]
