"""Lays a user's template over our pod template: what the user says wins, except for what makes it a
pod of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OUR_LABELS = "daybreak.dev/"
_NAMED_LISTS = ("containers", "initContainers", "volumes", "env", "volumeMounts", "ports")
_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort"}


def overlaid(
    template: Mapping[str, Any], overlay: Mapping[str, Any], main_container: str
) -> dict[str, Any]:
    """Objects merge, lists of named things merge by name, other lists are appended to."""
    merged: dict[str, Any] = _merge(template, overlay)
    ours = template["spec"]
    # The operator finds the pods by its labels and tells by them which are an attempt's workers;
    # the Job needs this restart policy.
    given = merged["metadata"]["labels"]
    theirs = {key: value for key, value in given.items() if not key.startswith(_OUR_LABELS)}
    merged["metadata"]["labels"] = theirs | template["metadata"]["labels"]
    merged["spec"]["restartPolicy"] = ours["restartPolicy"]
    if "subdomain" in ours:
        merged["spec"]["subdomain"] = ours["subdomain"]
    # Of one taint the user's tolerations hold; a key may stand there more than once.
    said = [t for t in merged["spec"].get("tolerations", []) if t not in ours["tolerations"]]
    keys = {toleration.get("key") for toleration in said}
    merged["spec"]["tolerations"] = said + [t for t in ours["tolerations"] if t["key"] not in keys]
    containers = merged["spec"]["containers"]
    containers.sort(key=lambda container: container["name"] != main_container)
    return merged


def keeping_off(template: Mapping[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """The template with an affinity against these nodes. The terms of a node selector are
    alternatives, so each of them has to say it."""
    if not nodes:
        return dict(template)
    wanted = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in nodes]
    spec = template["spec"]
    affinity = spec.get("affinity") or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchFields": [*term.get("matchFields", []), *wanted]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    changed = {
        **affinity,
        "nodeAffinity": {
            **node_affinity,
            "requiredDuringSchedulingIgnoredDuringExecution": {
                **required,
                "nodeSelectorTerms": terms,
            },
        },
    }
    return {**template, "spec": {**spec, "affinity": changed}}


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
