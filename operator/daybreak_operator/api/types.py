"""Field types that several parts of the spec share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from daybreak_operator.api.base import ApiModel, cel
from daybreak_operator.api.duration import DURATION_PATTERN, INTERVAL_PATTERN

Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=32)]
Interval = Annotated[str, Field(pattern=INTERVAL_PATTERN, max_length=32)]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Url = Annotated[str, Field(min_length=1, max_length=2048)]
Money = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=16)]
OpenObject = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]


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
