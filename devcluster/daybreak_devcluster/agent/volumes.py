"""Makes a pod's volumes as folders on the host, and the mounts of its containers.

Everything lies in the pod's own folder, except hostPath and persistent volumes. ConfigMaps and
Secrets are written once, at the pod's start; ServiceAccount tokens are renewed before they expire.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daybreak_devcluster.agent.api import Api, ApiError, persistently
from daybreak_devcluster.agent.environment import (
    Fetch,
    NotReadyError,
    PodAddress,
    expand,
    field_value,
)
from daybreak_devcluster.agent.limits import in_memory
from daybreak_devcluster.agent.quantity import parse_quantity
from daybreak_devcluster.agent.rootfs import Mount

Json = dict[str, Any]
_FILE_MODE = 0o644
_RENEW_AT = 0.8  # of a token's lifetime, as kubelets do


class PodVolumes:
    """The volumes of one pod."""

    def __init__(
        self, api: Api, pod: Json, folder: Path, address: PodAddress, fetch: Fetch
    ) -> None:
        self._api = api
        self._pod = pod
        self._folder = folder
        self._address = address
        self._fetch = fetch
        self._sources: dict[str, Path | None] = {}
        self._renewals: list[asyncio.Task[None]] = []
        self._read_only: set[str] = set()

    async def make(self) -> None:
        """Make all volumes. May be called again after `NotReadyError`.

        Raises `NotReadyError` where something that a volume shows is missing, and `ValueError`
        where a volume can never be made.
        """
        self.close()
        for volume in self._pod["spec"].get("volumes") or ():
            self._sources[volume["name"]] = await self._make(volume)

    def close(self) -> None:
        """Stop renewing tokens."""
        for task in self._renewals:
            task.cancel()
        self._renewals.clear()

    def mounts(self, container: Json, environment: dict[str, str]) -> Iterator[Mount]:
        """The mounts of one container, from its `volumeMounts`."""
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes") or ()}
        for mount in container.get("volumeMounts") or ():
            name = mount["name"]
            source = self._sources[name]
            writable = not mount.get("readOnly") and name not in self._read_only
            if source is None:
                limit = volumes[name]["emptyDir"].get("sizeLimit")
                size = None if limit is None else int(parse_quantity(limit))
                yield Mount(mount["mountPath"], size_bytes=size)
                continue
            sub = mount.get("subPath") or expand(mount.get("subPathExpr", ""), environment)
            if sub:
                source = sub_path(source, sub, writable)
            yield Mount(mount["mountPath"], source, writable)

    async def _make(self, volume: Json) -> Path | None:
        """The folder of a volume, or None where it is a memory folder of its container."""
        name: str = volume["name"]
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            if volume["persistentVolumeClaim"].get("readOnly"):
                self._read_only.add(name)
            return await self._claimed(volume["persistentVolumeClaim"]["claimName"])
        if in_memory(self._pod, volume):
            return None
        folder = self._folder / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            folder.chmod(0o777)
            return folder
        self._read_only.add(name)
        if "projected" in volume:
            mode = volume["projected"].get("defaultMode", _FILE_MODE)
            for source in volume["projected"].get("sources") or ():
                await self._write_source(folder, source, mode)
        else:
            kind = next(key for key in ("configMap", "secret", "downwardAPI") if key in volume)
            source = dict(volume[kind])
            if kind == "secret":
                source["name"] = source.pop("secretName", "")
            await self._write_source(folder, {kind: source}, source.get("defaultMode", _FILE_MODE))
        return folder

    async def _write_source(self, folder: Path, source: Json, mode: int) -> None:
        if "serviceAccountToken" in source:
            await self._write_token(folder, source["serviceAccountToken"], mode)
        elif "downwardAPI" in source:
            for item in source["downwardAPI"].get("items") or ():
                if "fieldRef" not in item:
                    raise ValueError(f"downwardAPI item {item['path']!r}: only fieldRef works here")
                value = field_value(self._pod, item["fieldRef"]["fieldPath"], self._address)
                _write(folder / item["path"], value.encode(), item.get("mode", mode))
        else:
            field, kind = (
                ("configMap", "configmaps") if "configMap" in source else ("secret", "secrets")
            )
            await self._write_data(folder, kind, source[field], mode)

    async def _write_data(self, folder: Path, kind: str, source: Json, mode: int) -> None:
        data = await self._fetch(kind, source["name"])
        if data is None:
            if source.get("optional"):
                return
            raise NotReadyError(f"{kind} {source['name']!r} not found")
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            if item["key"] in data:
                _write(folder / item["path"], data[item["key"]], item.get("mode", mode))
            elif not source.get("optional"):
                raise NotReadyError(f"{kind} {source['name']!r} has no key {item['key']!r}")

    async def _write_token(self, folder: Path, source: Json, mode: int) -> None:
        path = folder / source["path"]
        seconds = max(600, source.get("expirationSeconds", 3600))
        pod = self._pod["metadata"]
        account = self._pod["spec"].get("serviceAccountName", "default")
        url = f"/api/v1/namespaces/{pod['namespace']}/serviceaccounts/{account}/token"
        audience = [source["audience"]] if source.get("audience") else []
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["name"], "uid": pod["uid"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audience,
                "expirationSeconds": seconds,
                "boundObjectRef": bound,
            },
        }

        async def renew() -> None:
            answer = await persistently(lambda: self._api.post(url, request))
            _write(path, answer["status"]["token"].encode(), mode)

        async def keep_fresh() -> None:
            while True:
                await asyncio.sleep(seconds * _RENEW_AT)
                await renew()

        try:
            await renew()
        except ApiError as error:
            raise NotReadyError(f"no token for ServiceAccount {account!r}: {error}") from None
        self._renewals.append(asyncio.create_task(keep_fresh()))

    async def _claimed(self, claim: str) -> Path:
        """The folder of the persistent volume that a claim is bound to."""
        namespace = self._pod["metadata"]["namespace"]
        try:
            path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"
            found = await persistently(lambda: self._api.get(path))
            volume_name = found["spec"].get("volumeName")
            if found.get("status", {}).get("phase") != "Bound" or not volume_name:
                raise NotReadyError(f"PersistentVolumeClaim {claim!r} is not bound")
            volume_path = f"/api/v1/persistentvolumes/{volume_name}"
            volume = await persistently(lambda: self._api.get(volume_path))
        except ApiError as error:
            raise NotReadyError(f"PersistentVolumeClaim {claim!r}: {error}") from None
        for kind in ("hostPath", "local"):
            if kind in volume["spec"]:
                return _host_path({"path": volume["spec"][kind]["path"]})
        raise ValueError(
            f"PersistentVolume {volume_name!r} (claim {claim!r}) is neither hostPath nor local: "
            "the development cluster has folders only"
        )


def _host_path(source: Json) -> Path:
    path = Path(source["path"])
    kind = source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    elif kind not in ("", "Directory", "File"):
        raise ValueError(f"hostPath {path}: type {kind} is not supported")
    if not path.exists():
        raise NotReadyError(f"hostPath {path} does not exist on the host")
    if kind == "Directory" and not path.is_dir():
        raise NotReadyError(f"hostPath {path} is not a folder")
    return path


def sub_path(source: Path, sub: str, writable: bool) -> Path:
    """A folder or file in a volume; made where it is not there and may be written."""
    path = Path(os.path.realpath(source / sub))
    if not path.is_relative_to(os.path.realpath(source)):
        raise ValueError(f"subPath {sub!r} leaves its volume")
    if not path.exists():
        if not writable:
            raise NotReadyError(f"subPath {sub!r} does not exist in the volume")
        path.mkdir(parents=True, exist_ok=True)  # another pod's agent may make it now
    return path


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step: a reader in the pod sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{time.monotonic_ns()}")
    partial.write_bytes(content)
    partial.chmod(mode)
    partial.replace(path)
