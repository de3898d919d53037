"""What the operator may do by `manifests/base`, and what a call to the API server asks for: both as
RBAC says it, such as `("create", "jobs")` or `("update", "trainingruns/status")`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

Right = tuple[str, str]
"""Verb and resource."""
WRITING = frozenset({"create", "update", "patch", "delete"})
_RBAC = Path(__file__).parents[2] / "manifests/base/rbac.yaml"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
METHODS = {verb: method for method, verb in _VERBS.items()}
_FOR_ADMISSION = "trainingruns/finalizers"
"""No call: an admission plugin asks for it where owner references block the owner's deletion."""


def granted() -> set[Right]:
    """All that the manifests let the operator call."""
    documents = yaml.safe_load_all(_RBAC.read_text())
    return {
        (verb, resource)
        for document in documents
        for rule in document.get("rules", ())
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if resource != _FOR_ADMISSION
    }


def right(method: str, url: str) -> Right | None:
    """What a call needs, None for one that is about no object; `url` may be a path and a query."""
    asked = urlsplit(url)
    parts = asked.path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if not parts:
        return None
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join(parts[::2])  # without the object's name
    if method in _VERBS:
        return _VERBS[method], resource
    if len(parts) > 1:
        return "get", resource
    watch = parse_qs(asked.query).get("watch", [""])[0].lower() in ("1", "true")
    return ("watch" if watch else "list"), resource
