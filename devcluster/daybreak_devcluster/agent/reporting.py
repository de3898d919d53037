"""Writes a pod's status to the API server whenever it changed, and never twice at once."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daybreak_devcluster.agent import status
from daybreak_devcluster.agent.api import STRATEGIC, Api, ApiError, persistently
from daybreak_devcluster.agent.environment import PodAddress
from daybreak_devcluster.agent.limits import NOT_ENFORCED, not_enforced
from daybreak_devcluster.agent.status import ContainerState

Json = dict[str, Any]
_log = logging.getLogger(__name__)


class PodFailedError(Exception):
    """The pod cannot run at all, or may not run on; `reason` is for its status."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Outcome:
    """What the pod's status says beside its containers'."""

    ended: bool = False
    """Nothing is started any more, and nothing runs."""
    failure: PodFailedError | None = None
    disruption: str | None = None
    """Why the node, rather than the pod, is at fault."""


class Reporter:
    """The status of one pod."""

    def __init__(
        self,
        api: Api,
        pod: Json,
        address: PodAddress,
        init: Sequence[ContainerState],
        main: Sequence[ContainerState],
    ) -> None:
        self.outcome = Outcome()
        self._api = api
        self._pod = pod
        self._address = address
        self._init = init
        self._main = main
        before = pod.get("status") or {}
        self._start_time = before.get("startTime") or status.now()
        self._conditions: dict[str, Json] = {
            item["type"]: item for item in before.get("conditions") or ()
        }
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._written: Json | None = None

    @property
    def path(self) -> str:
        """The pod's URL."""
        metadata = self._pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    def changed(self) -> None:
        """Write the status soon."""
        self._dirty.set()

    async def keep_written(self) -> None:
        """Write the status after every change, for ever. Cancelling it cuts no write short."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await asyncio.shield(self.write())

    async def write(self) -> None:
        """Write the status now, unless it is written; waits for a server that is away."""
        async with self._writing:
            wanted = self._status()
            if wanted == self._written:
                return
            metadata: Json = {"uid": self._pod["metadata"]["uid"]}
            if self._written is None:
                metadata["annotations"] = {NOT_ENFORCED: ", ".join(not_enforced(self._pod))}
            body = {"metadata": metadata, "status": wanted}
            try:
                await persistently(lambda: self._api.patch(f"{self.path}/status", body, STRATEGIC))
            except ApiError as error:
                if error.status not in (404, 409):  # gone, or another pod of the same name
                    _log.error("status of %s: %s", self.path, error)
            self._written = wanted

    def _status(self) -> Json:
        outcome = self.outcome
        if outcome.ended:
            for state in (*self._init, *self._main):
                state.end_unseen()
        phase = status.phase(self._init, self._main, ended=outcome.ended)
        result: Json = {}
        if outcome.failure is not None and outcome.ended:
            phase = "Failed"
            result = {"reason": outcome.failure.reason, "message": str(outcome.failure)}
        wanted = status.conditions(self._init, self._main, phase)
        if outcome.disruption is not None:
            wanted["DisruptionTarget"] = ("True", "TerminationByKubelet", outcome.disruption)
        self._conditions = status.conditions_json(wanted, self._conditions)
        address = self._address
        return {
            **result,
            "phase": phase,
            "startTime": self._start_time,
            "hostIP": address.host_ip,
            "hostIPs": [{"ip": address.host_ip}],
            "podIP": address.pod_ip,
            "podIPs": [{"ip": address.pod_ip}],
            "conditions": list(self._conditions.values()),
            "initContainerStatuses": [state.to_json() for state in self._init],
            "containerStatuses": [state.to_json() for state in self._main],
        }
