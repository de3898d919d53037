"""The API server, as far as the operator needs it: reads by name, and idempotent writes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from aiohttp import ClientError
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator import metrics
from daybreak_operator.api.run import API_VERSION, KIND, PLURAL, TrainingRun
from daybreak_operator.capacity import Inventory
from daybreak_operator.children.names import config_name, selector
from daybreak_operator.children.queueing import held_back
from daybreak_operator.decision import JobRef, PodRef
from daybreak_operator.draft import EventNote
from daybreak_operator.errors import (
    ConflictError,
    ForeignObjectError,
    RefusedObjectError,
    changed,
    said,
)
from daybreak_operator.log import describe
from daybreak_operator.observation import FixedRecipe, JobView, PreparationView, owner_uid
from daybreak_operator.requests import path, request
from daybreak_trainer.contract import RECIPE_PATH, rfc3339

_log = logging.getLogger(__name__)
_RESOURCES = {
    "ConfigMap": "configmaps",
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "Job": "jobs",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Secret": "secrets",
}
_REFUSALS = (400, 403, 422)
_PAGE = 500
"""Objects that are read at a time where they may be thousands."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
COMPONENT = "daybreak-operator"


class Named(Protocol):
    """As much of a run as names it."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


class Cluster:
    """Raises `ApiException` for what it does not handle itself; the controller tries again."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def _call(
        self, method: str, where: str, body: Mapping[str, Any] | None = None, **query: str
    ) -> Any:
        return await request(self._api, method, where, body, **query)

    async def ensure(self, run: TrainingRun, body: Mapping[str, Any]) -> None:
        """Creates an object unless it is there and ours.

        Raises:
            ForeignObjectError: it is there and belongs to somebody else.
            RefusedObjectError: it cannot be there: it is not valid, or a webhook, a quota, a policy
                or the operator's own rights are against it.
        """
        kind, name = body["kind"], body["metadata"]["name"]
        resource = _RESOURCES[kind]
        try:
            await self._call("POST", path(resource, run.namespace), body)
        except ApiException as error:
            if error.status not in (409, *_REFUSALS):
                raise
            # A quota that is used up, or a webhook, refuses also what is there already.
            try:
                found = await self._call("GET", path(resource, run.namespace, name))
            except ApiException as unseen:
                if error.status in _REFUSALS and unseen.status in (403, 404):
                    raise RefusedObjectError(f"{kind} {name}: {said(error)}") from error
                raise
            if owner_uid(found["metadata"]) != run.uid:
                raise ForeignObjectError(
                    f"{kind} {name} exists and does not belong to this run; rename or delete it."
                ) from None

    async def delete_job(self, run: TrainingRun, job: JobRef) -> None:
        """That Job and no other of its name; in the foreground, so it is gone only when its pods
        are."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": job.uid}}
        await self._delete(path("jobs", run.namespace, job.name), options)

    async def delete_pod(self, run: TrainingRun, pod: PodRef) -> None:
        """That pod and no other of its name; at once where it says so."""
        at_once = {"gracePeriodSeconds": 0} if pod.at_once else {}
        options = {"preconditions": {"uid": pod.uid}, **at_once}
        await self._delete(path("pods", run.namespace, pod.name), options)

    async def delete_run(self, run: TrainingRun) -> None:
        """The run, as it was read; its children follow.

        Raises:
            ConflictError: it is another, or not any more as it was read.
        """
        options = {
            "preconditions": {"uid": run.uid, "resourceVersion": run.resource_version},
        }
        try:
            await self._call("DELETE", path(PLURAL, run.namespace, run.name), options)
        except ApiException as error:
            raise changed(error, run.name) from error

    async def _delete(self, where: str, options: Mapping[str, Any]) -> None:
        try:
            await self._call("DELETE", where, options)
        except ApiException as error:
            if error.status not in (404, 409):  # it is gone, or another has its name
                raise

    async def write_status(self, run: TrainingRun, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """Replaces the status, if the run is still the one that was read; returns the new run.

        Raises:
            ConflictError: it is not.
        """
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": run.name,
                "namespace": run.namespace,
                "uid": run.uid,
                "resourceVersion": run.resource_version,
            },
            # The server keeps the stored spec; its schema asks for one all the same.
            "spec": run.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
            | {"recipe": dict(run.raw_recipe)},
            "status": dict(status),
        }
        try:
            written: Mapping[str, Any] = await self._call(
                "PUT", path(PLURAL, run.namespace, run.name, "status"), body
            )
        except ApiException as error:
            raise changed(error, run.name) from error
        before = run.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        metrics.count_change(before, status)
        return written

    async def patch_status(
        self, run: Named, resource_version: str, status: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Changes these fields of the status and no others, if the run has that version; returns
        the new run.

        Raises:
            ConflictError: it has not.
        """
        body = {"metadata": {"resourceVersion": resource_version}, "status": dict(status)}
        where = path(PLURAL, run.namespace, run.name, "status")
        try:
            written: Mapping[str, Any] = await self._call("PATCH", where, body)
        except ApiException as error:
            raise changed(error, run.name) from error
        return written

    async def confirm(self, run: TrainingRun) -> None:
        """Raises ConflictError: the run is not any more as it was read."""
        try:
            found = await self._call("GET", path(PLURAL, run.namespace, run.name))
        except ApiException as error:
            raise changed(error, run.name) from error
        if found["metadata"]["resourceVersion"] != run.resource_version:
            raise ConflictError

    async def children(self, run: TrainingRun) -> dict[str, list[dict[str, Any]]]:
        """The Jobs and pods that carry the run's label, as the API server has them now."""
        jobs, pods = await asyncio.gather(
            *(
                self._call("GET", path(resource, run.namespace), labelSelector=selector(run))
                for resource in ("jobs", "pods")
            )
        )
        return {"Job": jobs["items"], "Pod": pods["items"]}

    async def run_uids(self, namespace: str) -> set[str]:
        """Of all runs of a namespace."""
        pages = self._pages(path(PLURAL, namespace), accept=_METADATA_ONLY, limit=str(_PAGE))
        return {body["metadata"]["uid"] async for items in pages for body in items}

    async def _pages(self, where: str, **query: str) -> AsyncIterator[list[dict[str, Any]]]:
        """A long list, a part at a time."""
        while True:
            found = await self._call("GET", where, None, **query)
            yield found["items"]
            if not (more := found["metadata"].get("continue")):
                return
            query["continue"] = more

    async def inventory(self) -> Inventory | None:
        """What all nodes have left; None where the operator may not read nodes and all pods."""
        at_work = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
        try:
            found = Inventory((await self._call("GET", path("nodes")))["items"])
            async for pods in self._pages(path("pods"), fieldSelector=at_work, limit=str(_PAGE)):
                found.take(pods)
            return found
        except (ApiException, ClientError, OSError) as error:
            _unless_usual("nodes and pods", error, (403,))
            return None

    async def queue_says(self, run: TrainingRun, job: JobView | PreparationView) -> str | None:
        """Why Kueue holds a Job back; None where it has not said yet, is not installed, or where
        the operator may not read its Workloads."""
        mine = f"kueue.x-k8s.io/job-uid={job.uid}"
        try:
            found = await self._call("GET", path("workloads", run.namespace), labelSelector=mine)
        except (ApiException, ClientError, OSError) as error:
            _unless_usual("Workloads", error, (403, 404))
            return None
        return held_back(found["items"])

    async def recipe(self, run: TrainingRun, recipe_hash: str) -> FixedRecipe | None:
        """The recipe of that hash, as the run's ConfigMap has it; None where there is none."""
        where = path("configmaps", run.namespace, config_name(run, recipe_hash))
        try:
            found = await self._call("GET", where)
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        text = (found.get("data") or {}).get(RECIPE_PATH.name)
        return FixedRecipe(recipe_hash, text) if text is not None else None

    async def missing(self, run: TrainingRun, kind: str, name: str) -> bool:
        """Whether a PersistentVolumeClaim or Secret of the run's namespace does not exist."""
        try:
            await self._call("GET", path(_RESOURCES[kind], run.namespace, name))
        except ApiException as error:
            if error.status == 404:
                return True
            raise
        return False

    async def record(self, run: Named, note: EventNote) -> None:
        """Writes an Event once: its name follows from what it says."""
        key = f"{run.uid}/{note.attempt}/{note.reason}/{note.message}"
        now = rfc3339(datetime.now(UTC), "seconds")
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{run.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}",
                "namespace": run.namespace,
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.name,
                "namespace": run.namespace,
                "uid": run.uid,
            },
            "type": note.kind,
            "reason": note.reason,
            "message": note.message,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
        }
        try:
            await self._call("POST", path("events", run.namespace), body)
        except ApiException as error:
            if error.status in _REFUSALS:
                # A quota for Events, say: that nobody is told must not stop the run.
                _log.warning("Event %s was refused: %s", note.reason, said(error))
            elif error.status != 409:
                raise


def _unless_usual(what: str, error: Exception, usual: tuple[int, ...]) -> None:
    """Logs why something could not be read that a run can go on without."""
    if not (isinstance(error, ApiException) and error.status in usual):
        _log.warning("%s cannot be read: %s", what, describe(error))
