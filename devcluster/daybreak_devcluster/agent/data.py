"""Fetches ConfigMaps and Secrets of one namespace as plain bytes."""

import base64
from typing import Any

from daybreak_devcluster.agent.api import Api, ApiError, persistently


class Data:
    """Reads on demand, so a pod that starts again sees the newest content."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace

    async def fetch(self, kind: str, name: str) -> dict[str, Any] | None:
        """The content of a ConfigMap or Secret (`kind` is the plural), key to bytes, or None."""
        path = f"/api/v1/namespaces/{self._namespace}/{kind}/{name}"
        try:
            found = await persistently(lambda: self._api.get(path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        plain = (found.get("data") or {}).items()
        if kind == "secrets":
            return {key: base64.b64decode(value) for key, value in plain}
        binary = (found.get("binaryData") or {}).items()
        return {key: value.encode() for key, value in plain} | {
            key: base64.b64decode(value) for key, value in binary
        }
