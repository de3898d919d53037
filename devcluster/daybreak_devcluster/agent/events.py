"""Writes Events, which tell a person why a pod or a claim is where it is."""

import asyncio
import logging
from typing import Any, Literal

from daybreak_devcluster.agent.api import Api, ApiError, Unreachable
from daybreak_devcluster.agent.status import now

Json = dict[str, Any]
_MAX_MESSAGE = 1024
_log = logging.getLogger(__name__)


class Events:
    """Writes in the background: an Event that cannot be written never holds up a pod."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._tasks: set[asyncio.Task[None]] = set()

    def write(
        self, about: Json, kind: Literal["Normal", "Warning"], reason: str, message: str
    ) -> None:
        """Write an Event about an object, given as its JSON with `apiVersion` and `kind`."""
        task = asyncio.create_task(self._post(about, kind, reason, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, about: Json, kind: str, reason: str, message: str) -> None:
        metadata = about["metadata"]
        time = now()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{metadata['name']}.",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                **{key: metadata[key] for key in ("name", "namespace", "uid")},
            },
            "type": kind,
            "reason": reason,
            "message": message[:_MAX_MESSAGE],
            "source": {"component": "daybreak-devcluster", "host": self._node},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        try:
            await self._api.post(f"/api/v1/namespaces/{metadata['namespace']}/events", event)
        except (ApiError, *Unreachable) as error:  # a namespace that ends takes no new objects
            _log.warning("event %s %s: %s", reason, metadata["name"], error)
