"""Requests to the API server: JSON in, JSON out, over the client library's connections and
credentials.

The library's generated calls would turn every object into a model and back; loading their classes
alone takes 100 MiB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

_TIMEOUT_SECONDS = 10
_GROUPS = {
    "pods": "/api/v1",
    "nodes": "/api/v1",
    "configmaps": "/api/v1",
    "services": "/api/v1",
    "events": "/api/v1",
    "secrets": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "jobs": "/apis/batch/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
    "workloads": "/apis/kueue.x-k8s.io/v1beta2",
    "trainingruns": "/apis/daybreak.dev/v1alpha1",
}


def path(resource: str, namespace: str | None = None, name: str = "", part: str = "") -> str:
    """Of a collection or an object (and its subresource). Names are quoted: a user's text stays
    one segment."""
    segments = [_GROUPS[resource]]
    if namespace is not None:
        segments += ["namespaces", quote(namespace, safe="")]
    segments += [resource, *(quote(segment, safe="") for segment in (name, part) if segment)]
    return "/".join(segments)


async def request(
    api: client.ApiClient,
    method: str,
    where: str,
    body: Mapping[str, Any] | None = None,
    accept: str = "application/json",
    **query: str,
) -> Any:
    """The answer's JSON; a PATCH is a merge patch. Raises ApiException where the answer is an
    error."""
    headers = {"Accept": accept}
    if body is not None:
        kind = "merge-patch+json" if method == "PATCH" else "json"
        headers["Content-Type"] = f"application/{kind}"
    prepared = await api.param_serialize(
        method,
        where,
        query_params=list(query.items()),
        header_params=headers,
        auth_settings=["BearerToken"],
    )
    verb, url, sent, _, form = prepared
    # The body passes the library by: it would look at every value, and there is nothing but JSON.
    content = dict(body) if body is not None else None
    response = await api.call_api(verb, url, sent, content, form, _request_timeout=_TIMEOUT_SECONDS)
    raw = await response.read()
    if not 200 <= response.status <= 299:
        text = raw.decode(errors="replace")
        raise ApiException.from_response(http_resp=response, body=text, data=None)
    return json.loads(raw)
