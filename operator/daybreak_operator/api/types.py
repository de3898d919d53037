"""Field types that several parts of the spec share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from daybreak_operator.api.base import ApiModel, cel
from daybreak_operator.api.duration import DURATION_PATTERN, INTERVAL_PATTERN, LONGEST_HOURS

_BOUNDED = f"duration(self) <= duration('{LONGEST_HOURS}h')"
_TOO_LONG = f"a duration must be at most {LONGEST_HOURS}h, which is ten years"
Duration = Annotated[
    str,
    Field(pattern=DURATION_PATTERN, max_length=32, json_schema_extra=cel((_BOUNDED, _TOO_LONG))),
]
Interval = Annotated[
    str,
    Field(
        pattern=INTERVAL_PATTERN,
        max_length=32,
        json_schema_extra=cel((f"self.endsWith('steps') || {_BOUNDED}", _TOO_LONG)),
    ),
]
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=rf"^{_LABEL}(\.{_LABEL})*$")]
"""Of an object: a DNS subdomain (RFC 1123), so it is one segment of a path."""
NO_CREDENTIALS = (
    r"!self.matches('^[^/]+://[^/@]*:[^/@]*@')",
    "a URL must not hold a password, for it is shown in status and logs: put it into a Secret and "
    "name that in secretRef",
)
Url = Annotated[str, Field(min_length=1, max_length=2048, json_schema_extra=cel(NO_CREDENTIALS))]
Money = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=16)]


def _open(**properties: Any) -> dict[str, Any]:
    """Schema of an object of which these fields are known, by their schemas."""
    known = {"properties": properties} if properties else {}
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True, **known}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_AMOUNTS = {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True}}
_NAMED = {**_open(name={"type": "string"}), "required": ["name"]}
_RESOURCES = _open(limits=_AMOUNTS, requests=_AMOUNTS)
_CONTAINERS = _list_of(
    {
        **_open(
            name={"type": "string"},
            env=_list_of(_NAMED),
            ports=_list_of(_open()),
            resources=_RESOURCES,
            volumeMounts=_list_of(_open()),
        ),
        "required": ["name"],
    }
)
_NODE_AFFINITY = _open(
    requiredDuringSchedulingIgnoredDuringExecution=_open(nodeSelectorTerms=_list_of(_open()))
)
Resources = Annotated[dict[str, Any], WithJsonSchema(_RESOURCES)]
"""As in a container. What the operator itself reads of it has its types; the API server knows the
rest when a Job is made of it."""
PodTemplate = Annotated[
    dict[str, Any],
    WithJsonSchema(
        _open(
            metadata=_open(labels=_TEXTS, annotations=_TEXTS),
            spec=_open(
                affinity=_open(nodeAffinity=_NODE_AFFINITY),
                containers=_CONTAINERS,
                initContainers=_CONTAINERS,
                nodeSelector=_TEXTS,
                schedulerName={"type": "string"},
                tolerations=_list_of(_open()),
                volumes=_list_of(_NAMED),
            ),
        )
    ),
]
"""Laid over a pod template; typed as `Resources` are."""


class SecretRef(ApiModel):
    name: Name = Field(description="Name of a Secret in the run's namespace.")


class PersistentVolumeClaim(ApiModel):
    claim_name: Name = Field(description="Name of a PersistentVolumeClaim in the run's namespace.")
    sub_path: str | None = Field(
        default=None,
        max_length=1024,
        description="Folder inside the volume; the whole volume if left out.",
        json_schema_extra=cel(
            (
                "!self.startsWith('/') && !self.contains('..')",
                "subPath must be a relative path without '..'",
            )
        ),
    )
