"""What all pods of a run have in common: they meet Pod Security's `restricted` level, hold no API
token, and see volumes and Secrets by role."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.types import PersistentVolumeClaim, SecretRef
from daybreak_trainer.contract import SECRETS_DIR, VOLUMES_DIR, Role

COMPLETION_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

_LOST_NODE_SECONDS = 60
_LOST_NODE: list[dict[str, Any]] = [
    {
        "key": f"node.kubernetes.io/{taint}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": _LOST_NODE_SECONDS,
    }
    for taint in ("unreachable", "not-ready")
]
"""Left to itself a cluster waits for five minutes before it takes a dead node's pods away, and all
others of the gang wait with it."""

ANY_POD: dict[str, Any] = {
    "tolerations": _LOST_NODE,
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
"""Of a pod's spec."""

SECURE_CONTAINER: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""A container's securityContext."""

Mounted = tuple[dict[str, Any], dict[str, Any]]
"""A volume of the pod, and its mount in the container."""


def field_env(name: str, path: str) -> dict[str, Any]:
    """A variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def text_env(name: str, text: str) -> dict[str, Any]:
    """A variable with just that text: `$(NAME)` and `$$` in it are a user's words, and no
    references for the kubelet."""
    return {"name": name, "value": text.replace("$", "$$")}


def mounted_claim(role: Role, claim: PersistentVolumeClaim, *, read_only: bool) -> Mounted:
    name = f"volume-{role}"
    mount: dict[str, Any] = {"name": name, "mountPath": str(VOLUMES_DIR / role)}
    if claim.sub_path:
        mount["subPath"] = claim.sub_path
    if read_only:
        mount["readOnly"] = True
    return {"name": name, "persistentVolumeClaim": {"claimName": claim.claim_name}}, mount


def mounted_secret(role: Role, secret: SecretRef) -> Mounted:
    name = f"secret-{role}"
    mount = {"name": name, "mountPath": str(SECRETS_DIR / role), "readOnly": True}
    return {"name": name, "secret": {"secretName": secret.name}}, mount
