"""A TrainingRun as the API server has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus

GROUP, VERSION, KIND, PLURAL = "daybreak.dev", "v1alpha1", "TrainingRun", "trainingruns"
API_VERSION = f"{GROUP}/{VERSION}"
MANAGER = "daybreak.dev/operator"
"""Our name in `spec.managedBy`."""


class InvalidRunError(ValueError):
    """An object that the schema let through and this operator cannot read; names the field."""


@dataclass(frozen=True)
class TrainingRun:
    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: TrainingRunSpec
    status: TrainingRunStatus
    raw_recipe: Mapping[str, Any]
    """`spec.recipe` as written."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime = datetime(1970, 1, 1, tzinfo=UTC)

    @property
    def ours(self) -> bool:
        """Whether no other controller manages it."""
        return self.spec.managed_by in (None, MANAGER)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> TrainingRun:
        """Raises InvalidRunError."""
        metadata = body["metadata"]
        try:
            spec = TrainingRunSpec.model_validate(body["spec"])
            status = TrainingRunStatus.model_validate(body.get("status") or {})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InvalidRunError(f"{where}: {first['msg']}") from error
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            resource_version=metadata["resourceVersion"],
            deleting="deletionTimestamp" in metadata,
            spec=spec,
            status=status,
            raw_recipe=body["spec"]["recipe"],
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            created=datetime.fromisoformat(metadata["creationTimestamp"]),
        )
