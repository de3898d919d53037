"""Gives PersistentVolumeClaims of the class `standard` a folder on the host.

A claim gets its own folder, removed with it, or the host folder that its annotation names, which is
never removed. Every node's agent does this: names are derived from the claim's UID, so doing it
twice is doing it once, and no node is special.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from daybreak_devcluster.agent.api import Api, ApiError, persistently
from daybreak_devcluster.agent.events import Events

Json = dict[str, Any]
STORAGE_CLASS = "standard"
PROVISIONER = "devcluster.daybreak.dev/folder"
PATH_ANNOTATION = "devcluster.daybreak.dev/path"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


class Provisioner:
    """Makes and removes volumes below one folder."""

    def __init__(self, api: Api, events: Events, folder: Path) -> None:
        self._api = api
        self._events = events
        self._folder = folder

    async def create_class(self) -> None:
        """Create the default StorageClass."""
        body = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        }
        path = "/apis/storage.k8s.io/v1/storageclasses"
        await _unless_there(lambda: self._api.post(path, body))

    async def watch_claims(self) -> None:
        """Make a volume for each claim that asks for one, for ever."""
        async for kind, thing in self._api.watch("/api/v1/persistentvolumeclaims"):
            if kind != "DELETED":
                for claim in thing["items"] if kind == "LISTED" else [thing]:
                    await self._provision(claim)

    async def watch_volumes(self) -> None:
        """Remove each of our volumes whose claim is gone, for ever."""
        async for kind, thing in self._api.watch("/api/v1/persistentvolumes"):
            if kind != "DELETED":
                for volume in thing["items"] if kind == "LISTED" else [thing]:
                    await self._reclaim(volume)

    async def _provision(self, claim: Json) -> None:
        spec, metadata = claim["spec"], claim["metadata"]
        if spec.get("storageClassName") != STORAGE_CLASS or spec.get("volumeName"):
            return
        if metadata.get("deletionTimestamp"):
            return
        chosen = (metadata.get("annotations") or {}).get(PATH_ANNOTATION)
        path = self._own_folder(metadata) if chosen is None else Path(chosen)
        try:
            _check(spec, path)
            path.mkdir(parents=True, exist_ok=True)
        except (ValueError, OSError) as error:
            self._fail(claim, str(error))
            return
        reference = {key: metadata[key] for key in ("name", "namespace", "uid")}
        body = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": f"pvc-{metadata['uid']}",
                "annotations": {_PROVISIONED_BY: PROVISIONER},
            },
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "persistentVolumeReclaimPolicy": "Delete" if chosen is None else "Retain",
                "storageClassName": STORAGE_CLASS,
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    **reference,
                },
                "hostPath": {"path": str(path)},
            },
        }
        try:
            await _unless_there(lambda: self._api.post("/api/v1/persistentvolumes", body))
        except ApiError as error:
            self._fail(claim, str(error))

    def _fail(self, claim: Json, message: str) -> None:
        about = {**claim, "apiVersion": "v1", "kind": "PersistentVolumeClaim"}
        self._events.write(about, "Warning", "ProvisioningFailed", message)

    async def _reclaim(self, volume: Json) -> None:
        metadata, spec = volume["metadata"], volume["spec"]
        ours = (metadata.get("annotations") or {}).get(_PROVISIONED_BY) == PROVISIONER
        released = (volume.get("status") or {}).get("phase") == "Released"
        if not ours or not released or spec["persistentVolumeReclaimPolicy"] != "Delete":
            return
        path = Path(spec["hostPath"]["path"])
        if path.is_relative_to(self._folder):
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
        with contextlib.suppress(ApiError):  # another node's agent was faster
            await persistently(
                lambda: self._api.delete(f"/api/v1/persistentvolumes/{metadata['name']}")
            )

    def _own_folder(self, metadata: Json) -> Path:
        """A claim made again under the same name gets another folder: the old one may still be
        on its way out."""
        name = f"{metadata['name']}-{metadata['uid'][:8]}"
        return self._folder.joinpath(metadata["namespace"], name)


def _check(spec: Json, path: Path) -> None:
    if spec.get("volumeMode", "Filesystem") != "Filesystem":
        raise ValueError(f"spec.volumeMode: {spec['volumeMode']}: only folders can be had here")
    if spec.get("selector"):
        raise ValueError("spec.selector: a new volume has no labels to select by")
    if spec.get("dataSource") or spec.get("dataSourceRef"):
        raise ValueError("spec.dataSource: volumes start empty here")
    if not path.is_absolute():
        raise ValueError(f"annotation {PATH_ANNOTATION}: {str(path)!r} is not an absolute path")


async def _unless_there(create: Callable[[], Awaitable[Json]]) -> None:
    try:
        await persistently(create)
    except ApiError as error:
        if error.status not in (404, 409):  # there already, or its claim is gone
            raise
