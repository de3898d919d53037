"""The Lease of the leader election, on the API server."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.leader import LeaseConflictError, LeaseRecord
from daybreak_trainer.contract import rfc3339


class KubernetesLease:
    """A `leader.LeaseStore`. Its client should be its own: election waits for no other request."""

    def __init__(self, api: client.ApiClient, namespace: str, name: str) -> None:
        self._leases = client.CoordinationV1Api(api)
        self._namespace, self._name = namespace, name

    async def read(self) -> LeaseRecord | None:
        try:
            return _record(await self._leases.read_namespaced_lease(self._name, self._namespace))
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    async def create(self, record: LeaseRecord) -> LeaseRecord:
        try:
            return _record(
                await self._leases.create_namespaced_lease(self._namespace, self._body(record))
            )
        except ApiException as error:
            raise _conflict(error) from error

    async def replace(self, record: LeaseRecord) -> LeaseRecord:
        try:
            return _record(
                await self._leases.replace_namespaced_lease(
                    self._name, self._namespace, self._body(record)
                )
            )
        except ApiException as error:
            raise _conflict(error) from error

    def _body(self, record: LeaseRecord) -> dict[str, Any]:
        version = {"resourceVersion": record.version} if record.version else {}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace, **version},
            "spec": {
                "holderIdentity": record.holder,
                "leaseDurationSeconds": record.lease_seconds,
                "acquireTime": rfc3339(record.acquired, "microseconds"),
                "renewTime": rfc3339(record.renewed, "microseconds"),
                "leaseTransitions": record.transitions,
            },
        }


def _record(lease: Any) -> LeaseRecord:
    """Of a V1Lease; what another client left out is as if long ago."""
    spec, created = lease.spec, lease.metadata.creation_timestamp
    acquired: datetime = spec.acquire_time or created
    return LeaseRecord(
        holder=spec.holder_identity or "",
        lease_seconds=spec.lease_duration_seconds or 0,
        acquired=acquired,
        renewed=spec.renew_time or acquired,
        transitions=spec.lease_transitions or 0,
        version=lease.metadata.resource_version,
    )


def _conflict(error: ApiException) -> Exception:
    return LeaseConflictError(str(error.status)) if error.status in (404, 409) else error
