"""Registers the node, says every few seconds that it lives, and takes it away at the end."""

import asyncio
import contextlib
import datetime
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

from daybreak_devcluster.agent.api import STRATEGIC, Api, ApiError, Unreachable, persistently
from daybreak_devcluster.agent.status import now

Json = dict[str, Any]
_LEASE_SECONDS = 40
_HEARTBEAT_SECONDS = 4.0
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_log = logging.getLogger(__name__)
_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure")


class Node:
    """The node's object and its Lease."""

    def __init__(self, api: Api, name: str, address: str, capacity: Mapping[str, str]) -> None:
        self._api = api
        self._name = name
        self._address = address
        self._capacity = {"pods": "110", **capacity}
        self._registered: tuple[int, str] | None = None
        """The port for logs and the version, once the node is there."""

    async def register(self, log_port: int) -> None:
        """Create the node and mark it ready; `log_port` is where the API server asks for logs."""
        labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._name, "labels": labels},
        }
        await self._create("/api/v1/nodes", body)
        version = (await persistently(lambda: self._api.get("/version")))["gitVersion"]
        await persistently(lambda: self._say_ready(log_port, version))
        self._registered = (log_port, version)

    async def _say_ready(self, log_port: int, version: str) -> Json:
        status = {"status": self._status(log_port, version)}
        return await self._api.patch(f"/api/v1/nodes/{self._name}/status", status, STRATEGIC)

    async def _still_ready(self) -> None:
        """Say it again where the control plane has given the node up: a Lease that came late."""
        if self._registered is None:
            return
        node = await self._api.get(f"/api/v1/nodes/{self._name}")
        conditions = {c["type"]: c["status"] for c in node["status"].get("conditions", [])}
        if conditions.get("Ready") != "True":
            await self._say_ready(*self._registered)

    async def heartbeat(self) -> None:
        """Renew the node's Lease for ever, and say that it is ready where that was forgotten."""
        spec = {"holderIdentity": self._name, "leaseDurationSeconds": _LEASE_SECONDS}
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": "kube-node-lease"},
            "spec": spec,
        }
        while True:
            renewed = {"spec": {**spec, "renewTime": _micro_time()}}
            try:
                await self._api.patch(f"{_LEASES}/{self._name}", renewed)
            except ApiError:  # not there yet, or its namespace is not
                with contextlib.suppress(ApiError, *Unreachable):
                    await self._api.post(_LEASES, lease)
            except Unreachable as error:
                _log.warning("heartbeat: %r", error)
            with contextlib.suppress(ApiError, *Unreachable):
                await self._still_ready()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def unregister(self) -> None:
        """Delete the node and its Lease."""
        for path in (f"{_LEASES}/{self._name}", f"/api/v1/nodes/{self._name}"):
            with contextlib.suppress(ApiError):
                await self._api.delete(path)

    async def _create(self, path: str, body: Json) -> None:
        try:
            await persistently(lambda: self._api.post(path, body))
        except ApiError as error:
            if error.status != 409:  # a former agent's
                raise

    def _status(self, log_port: int, version: str) -> Json:
        time = now()
        stamps = {"lastHeartbeatTime": time, "lastTransitionTime": time}
        fine = [
            {"type": kind, "status": "False", "reason": "NotMeasured", "message": "", **stamps}
            for kind in _PRESSURES
        ]
        ready = {"type": "Ready", "status": "True", "reason": "AgentReady", "message": "", **stamps}
        machine = os.uname()
        return {
            "capacity": self._capacity,
            "allocatable": self._capacity,
            "conditions": [*fine, ready],
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self._name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
            "nodeInfo": {
                "architecture": _architecture(),
                "operatingSystem": "linux",
                "kernelVersion": machine.release,
                "osImage": "the development cluster's host",
                "containerRuntimeVersion": "bubblewrap://1",
                "kubeletVersion": version,
                "kubeProxyVersion": "",
                "machineID": self._name,
                "systemUUID": self._name,
                "bootID": self._name,
            },
        }


def _architecture() -> str:
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _micro_time() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
