"""The API server, as far as the operator needs it: reads by name, and idempotent writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator import metrics
from daybreak_operator.api.run import API_VERSION, GROUP, KIND, PLURAL, VERSION, TrainingRun
from daybreak_operator.capacity import Capacity, capacity
from daybreak_operator.children.names import config_name, selector
from daybreak_operator.children.queueing import held_back
from daybreak_operator.decision import PodRef
from daybreak_operator.draft import EventNote
from daybreak_operator.observation import FixedRecipe, JobView
from daybreak_trainer.contract import RECIPE_PATH, rfc3339

_TIMEOUT_SECONDS = 10
_REFUSALS = (400, 403, 422)
_MAX_SAID = 1024
COMPONENT = "daybreak-operator"


class ConflictError(Exception):
    """The object changed since it was read; look again."""


class ForeignObjectError(Exception):
    """An object with a child's name that is not ours; the message names it."""


class Named(Protocol):
    """As much of a run as names it."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


class RefusedObjectError(Exception):
    """The API server, or something that it asks, will not have an object as it is; the message says
    which and why."""


class Cluster:
    """Raises `ApiException` for what it does not handle itself; the controller tries again."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._core = client.CoreV1Api(api)
        self._batch = client.BatchV1Api(api)
        self._networking = client.NetworkingV1Api(api)
        self._custom = client.CustomObjectsApi(api)

    async def ensure(self, run: TrainingRun, body: Mapping[str, Any]) -> None:
        """Creates an object unless it is there and ours.

        Raises:
            ForeignObjectError: it is there and belongs to somebody else.
            RefusedObjectError: it cannot be there: it is not valid, or a webhook, a quota, a policy
                or the operator's own rights are against it.
        """
        kind, name = body["kind"], body["metadata"]["name"]
        create, read = {
            "ConfigMap": (
                self._core.create_namespaced_config_map,
                self._core.read_namespaced_config_map,
            ),
            "Service": (self._core.create_namespaced_service, self._core.read_namespaced_service),
            "NetworkPolicy": (
                self._networking.create_namespaced_network_policy,
                self._networking.read_namespaced_network_policy,
            ),
            "Job": (self._create_job, self._batch.read_namespaced_job),
        }[kind]
        try:
            await create(run.namespace, dict(body), _request_timeout=_TIMEOUT_SECONDS)
        except ApiException as error:
            if error.status in _REFUSALS:
                raise RefusedObjectError(f"{kind} {name}: {_said(error)}") from error
            if error.status != 409:
                raise
            found = await read(name, run.namespace, _request_timeout=_TIMEOUT_SECONDS)
            owners = found.metadata.owner_references or []
            if not any(owner.controller and owner.uid == run.uid for owner in owners):
                raise ForeignObjectError(
                    f"{kind} {name} exists and does not belong to this run; rename or delete it."
                ) from None

    async def _create_job(self, namespace: str, body: dict[str, Any], **options: Any) -> None:
        """As it is: what a user laid over the pod template is the API server's to judge. The client
        refuses a quantity such as `8` that is not a string, and drops fields that it does not know.
        """
        await self._custom.create_namespaced_custom_object(
            "batch", "v1", namespace, "jobs", body, **options
        )

    async def delete_job(self, run: TrainingRun, name: str) -> None:
        """In the foreground, so the Job is gone only when its pods are."""
        try:
            await self._batch.delete_namespaced_job(
                name,
                run.namespace,
                propagation_policy="Foreground",
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            if error.status != 404:
                raise

    async def delete_pod(self, run: TrainingRun, pod: PodRef) -> None:
        """That pod and no other of its name; at once where it says so."""
        body = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=pod.uid),
            grace_period_seconds=0 if pod.at_once else None,
        )
        try:
            await self._core.delete_namespaced_pod(
                pod.name, run.namespace, body=body, _request_timeout=_TIMEOUT_SECONDS
            )
        except ApiException as error:
            if error.status not in (404, 409):  # it is gone, or another has its name
                raise

    async def delete_run(self, run: TrainingRun) -> None:
        """The run, as it was read; its children follow."""
        body = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=run.uid, resource_version=run.resource_version)
        )
        try:
            await self._custom.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                run.namespace,
                PLURAL,
                run.name,
                body=body,
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            if error.status not in (404, 409):
                raise

    async def write_status(self, run: TrainingRun, status: Mapping[str, Any]) -> None:
        """Replaces the status, if the run is still the one that was read.

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
            await self._custom.replace_namespaced_custom_object_status(
                GROUP,
                VERSION,
                run.namespace,
                PLURAL,
                run.name,
                body,
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            if error.status in (404, 409):
                raise ConflictError from error
            raise
        before = run.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        metrics.count_change(before, status)

    async def patch_status(
        self, run: Named, resource_version: str, status: Mapping[str, Any]
    ) -> None:
        """Changes these fields of the status and no others, if the run has that version.

        Raises:
            ConflictError: it has not.
        """
        try:
            await self._custom.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                run.namespace,
                PLURAL,
                run.name,
                {"metadata": {"resourceVersion": resource_version}, "status": dict(status)},
                _request_timeout=_TIMEOUT_SECONDS,
                _content_type="application/merge-patch+json",
            )
        except ApiException as error:
            if error.status in (404, 409):
                raise ConflictError from error
            raise

    async def children(self, run: TrainingRun) -> dict[str, list[dict[str, Any]]]:
        """The Jobs and pods that carry the run's label, as the API server has them now."""
        lists = {
            "Job": self._batch.list_namespaced_job,
            "Pod": self._core.list_namespaced_pod,
        }
        found: dict[str, list[dict[str, Any]]] = {}
        for kind, read in lists.items():
            answer = await read(
                run.namespace, label_selector=selector(run), _request_timeout=_TIMEOUT_SECONDS
            )
            found[kind] = self._api.sanitize_for_serialization(answer.items)
        return found

    async def capacity(self, worker: Mapping[str, Any], mine: set[str]) -> Capacity | None:
        """What nodes have left for such a pod; None where the operator may not read nodes and all
        pods."""
        try:
            nodes = await self._core.list_node(_request_timeout=_TIMEOUT_SECONDS)
            pods = await self._core.list_pod_for_all_namespaces(
                field_selector="spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            if error.status == 403:
                return None
            raise
        plain = self._api.sanitize_for_serialization
        return capacity(plain(nodes.items), plain(pods.items), worker, mine)

    async def queue_says(self, run: TrainingRun, job: JobView) -> str | None:
        """Why Kueue holds a Job back; None where it has not said yet, is not installed, or where
        the operator may not read its Workloads."""
        try:
            found = await self._custom.list_namespaced_custom_object(
                "kueue.x-k8s.io",
                "v1beta2",
                run.namespace,
                "workloads",
                label_selector=f"kueue.x-k8s.io/job-uid={job.uid}",
                _request_timeout=_TIMEOUT_SECONDS,
            )
        except ApiException as error:
            if error.status in (403, 404):
                return None
            raise
        return held_back(found["items"])

    async def recipe(self, run: TrainingRun, recipe_hash: str) -> FixedRecipe | None:
        """The recipe of that hash, as the run's ConfigMap has it; None where there is none."""
        try:
            found = await self._core.read_namespaced_config_map(
                config_name(run, recipe_hash), run.namespace, _request_timeout=_TIMEOUT_SECONDS
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        text = (found.data or {}).get(RECIPE_PATH.name)
        return FixedRecipe(recipe_hash, text) if text is not None else None

    async def missing(self, run: TrainingRun, kind: str, name: str) -> bool:
        """Whether a PersistentVolumeClaim or Secret of the run's namespace does not exist."""
        read = {
            "PersistentVolumeClaim": self._core.read_namespaced_persistent_volume_claim,
            "Secret": self._core.read_namespaced_secret,
        }[kind]
        try:
            await read(name, run.namespace, _request_timeout=_TIMEOUT_SECONDS)
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
            "message": note.message[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
        }
        try:
            await self._core.create_namespaced_event(
                run.namespace, body, _request_timeout=_TIMEOUT_SECONDS
            )
        except ApiException as error:
            if error.status != 409:
                raise


def _said(error: ApiException) -> str:
    """The API server's own words."""
    try:
        text = str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        text = f"{error.status} {error.reason}"
    return text[:_MAX_SAID]
