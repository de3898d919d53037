"""The environment variables of a container, and the pod's fields that they may refer to."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Fetch = Callable[[str, str], Awaitable[Json | None]]
"""Takes "configmaps" or "secrets" and a name; returns the decoded data, or None where absent."""

_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(annotations|labels)\['([^']*)'\]")


class NotReadyError(Exception):
    """Something the pod needs is not there yet; the message names it. Worth another try.

    `reason` is the kubelet's word for it, where the place that asks has no better one.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class PodAddress:
    """What the agent knows of a pod beyond its JSON."""

    pod_ip: str
    host_ip: str
    node: str


def field_value(pod: Json, path: str, address: PodAddress) -> str:
    """The value of a fieldRef's `fieldPath`.

    Raises `ValueError` where the path is not one that Kubernetes offers.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    if found := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.annotations", "metadata.labels"):
        items = metadata.get(path.removeprefix("metadata.")) or {}
        return "\n".join(f'{key}="{_escaped(value)}"' for key, value in sorted(items.items()))
    simple = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": address.node,
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": address.pod_ip,
        "status.podIPs": address.pod_ip,
        "status.hostIP": address.host_ip,
        "status.hostIPs": address.host_ip,
    }
    if path not in simple:
        raise ValueError(f"fieldPath {path!r} is not supported")
    return str(simple[path])


async def build_environment(
    pod: Json, container: Json, address: PodAddress, base: Mapping[str, str], fetch: Fetch
) -> dict[str, str]:
    """The container's variables over `base`; `$(NAME)` refers to variables before it.

    Raises `NotReadyError` where a ConfigMap, a Secret or a key of one is missing and not optional,
    and `ValueError` as `field_value` does.
    """
    environment = dict(base)
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        for field, kind in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if field in source:
                data = await _data(kind, source[field], fetch)
                environment |= {prefix + key: _text(value) for key, value in data.items()}
    for variable in container.get("env") or ():
        value = await _value(variable, pod, address, environment, fetch)
        if value is not None:
            environment[variable["name"]] = value
    return environment


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable, `$$` by `$`; unknown names stay as they are."""

    def replacement(found: "re.Match[str]") -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return _REFERENCE.sub(replacement, text)


async def _value(
    variable: Json, pod: Json, address: PodAddress, environment: Mapping[str, str], fetch: Fetch
) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value", ""), environment)
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], address)
    for field, kind in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if field in source:
            reference = source[field]
            data = await _data(kind, reference, fetch)
            if reference["key"] in data:
                return _text(data[reference["key"]])
            if not reference.get("optional"):
                raise NotReadyError(
                    f"{kind} {reference['name']!r} has no key {reference['key']!r} "
                    f"(variable {variable['name']})"
                )
    return None


async def _data(kind: str, reference: Json, fetch: Fetch) -> Json:
    data = await fetch(kind, reference["name"])
    if data is None and not reference.get("optional"):
        raise NotReadyError(f"{kind} {reference['name']!r} not found")
    return data or {}


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
