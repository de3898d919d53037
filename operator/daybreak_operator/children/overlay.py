"""Lays `workers.template` over our pod template: what the user says wins, except for what makes it
a worker of this attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMED_LISTS = ("containers", "initContainers", "volumes", "env", "volumeMounts", "ports")
_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort"}


def overlaid(
    template: Mapping[str, Any], overlay: Mapping[str, Any], main_container: str
) -> dict[str, Any]:
    """Objects merge, lists of named things merge by name, other lists are appended to."""
    merged: dict[str, Any] = _merge(template, overlay)
    ours = template["spec"]
    # The operator finds the pods by these labels and the Job needs this restart policy.
    merged["metadata"]["labels"] |= template["metadata"]["labels"]
    merged["spec"]["restartPolicy"] = ours["restartPolicy"]
    merged["spec"]["subdomain"] = ours["subdomain"]
    containers = merged["spec"]["containers"]
    containers.sort(key=lambda container: container["name"] != main_container)
    return merged


def _merge(base: Any, over: Any, key: str = "") -> Any:
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        result = dict(base)
        for name, value in over.items():
            result[name] = _merge(base[name], value, name) if name in base else value
        return result
    if key in _NAMED_LISTS and isinstance(base, Sequence) and isinstance(over, Sequence):
        return _merge_named(base, over, _KEYS.get(key, "name"))
    return over


def _merge_named(base: Sequence[Any], over: Sequence[Any], key: str) -> list[Any]:
    changes = {item.get(key): item for item in over}
    result = [_merge(item, changes.pop(item.get(key), {})) for item in base]
    return result + list(changes.values())
