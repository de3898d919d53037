"""The CRD as a person reads it with `kubectl explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daybreak_operator.api.crd import crd
from daybreak_operator.api.duration import DURATION_PATTERN, INTERVAL_PATTERN

ROOT: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and schema of every field that is ours; inside a pod template they are Kubernetes'."""
    yield path, schema
    if not schema.get("x-kubernetes-preserve-unknown-fields"):
        for name, field in schema.get("items", schema).get("properties", {}).items():
            yield from fields(field, f"{path}.{name}")


def test_every_field_says_what_it_is() -> None:
    """`kubectl explain` is the documentation, of spec and status alike."""
    found = [
        *fields(ROOT["properties"]["spec"], "spec"),
        *fields(ROOT["properties"]["status"], "status"),
    ]
    assert len(found) > 200
    assert [path for path, schema in found if not schema.get("description")] == []


def test_a_duration_is_described_as_one() -> None:
    """`interval: 10` is refused as being of another type; the description says what to write."""
    durations = [
        (path, schema["description"])
        for path, schema in fields(ROOT["properties"]["spec"], "spec")
        if schema.get("pattern") in (DURATION_PATTERN, INTERVAL_PATTERN)
    ]
    assert len(durations) > 10
    assert [path for path, text in durations if not text.startswith("A duration such as ")] == []
