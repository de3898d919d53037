"""What every API model shares: camelCase outside, frozen inside, unknown fields refused, and CEL
rules that travel into the CRD beside the type they guard."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """`json_schema_extra` with (rule, message) pairs; the message names the field."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]
    }


class ApiModel(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )
