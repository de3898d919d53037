"""Generates the CRD and the API reference from the pydantic models.

`python -m daybreak_operator.api.crd` writes `manifests/base/crd.yaml`, the chart's copy of it and
`docs/api.md`. A test holds that they are up to date.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from daybreak_operator.api.base import cel
from daybreak_operator.api.run import GROUP, KIND, PLURAL, VERSION
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus

_ROOT = Path(__file__).parents[3]
CRD_PATH = _ROOT / "manifests/base/crd.yaml"
CHART_PATH = _ROOT / "charts/daybreak/files/crd.yaml"
REFERENCE_PATH = _ROOT / "docs/api.md"
_DROPPED = ("title", "additionalProperties", "discriminator", "const")
_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Running")].reason', 0),
    ("Stage", "string", ".status.stage.name", 0),
    ("Step", "integer", ".status.progress.step", 0),
    ("Progress", "integer", ".status.progress.percent", 0),
    ("Img/s", "string", ".status.progress.imagesPerSecond", 0),
    ("Goodput", "string", ".status.ledger.goodput", 0),
    ("Cost", "string", ".status.ledger.cost", 0),
    # A column of type date shows how long ago, and nothing for what is to come.
    ("ETA", "string", ".status.progress.estimatedCompletionTime", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Restarts", "integer", ".status.restarts", 1),
    ("Nodes", "string", ".status.workers.summary", 1),
    ("Last failure", "string", ".status.lastFailure.reason", 1),
)


def structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as the structural schema that a CRD wants: references inlined,
    `X | None` as X (absent means none), constants as enums."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
    if "anyOf" in schema:
        options = [o for o in schema["anyOf"] if o.get("type") != "null"]
        rest = {k: v for k, v in schema.items() if k != "anyOf"}
        merged = structural(options[0], definitions)
        return {**merged, **_cleaned(rest, definitions)}
    return _cleaned(schema, definitions)


def _cleaned(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "const":
            result["enum"] = [value]
        elif key == "additionalProperties" and isinstance(value, dict) and value:
            result[key] = structural(value, definitions)
        elif key == "properties":
            result[key] = {name: structural(v, definitions) for name, v in value.items()}
        elif key == "items":
            result[key] = structural(value, definitions)
        elif key in ("exclusiveMinimum", "exclusiveMaximum"):
            result[key.replace("exclusiveM", "m")] = value
            result[key] = True
        elif key == "default":
            if value is not None:
                result[key] = _without_none(value)
        elif key == "description":
            result[key] = " ".join(str(value).split())
        elif key not in _DROPPED:
            result[key] = value
    return result


def _without_none(value: Any) -> Any:
    """A default as the API server stores it: an absent field is absent."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return list(value) if isinstance(value, tuple) else value


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True)
    return structural(raw, raw.get("$defs", {}))


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition."""
    spec, status = schema_of(TrainingRunSpec), schema_of(TrainingRunStatus)
    for part in (spec, status):
        part.pop("$defs", None)
    root = {
        "type": "object",
        "description": "A text-to-image model to train from scratch.",
        "required": ["spec"],
        "properties": {"spec": spec, "status": status},
        **cel(
            (
                "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
                "metadata.name must be an RFC 1035 label: it becomes a Service's name",
            ),
            (
                "size(self.metadata.name) <= 45",
                "metadata.name must be at most 45 characters: pods are <name>-<attempt>-<index>",
            ),
        ),
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path}
            | ({"priority": priority} if priority else {})
            for name, kind, path, priority in _COLUMNS
        ],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.workers.nodes",
                "statusReplicasPath": ".status.workers.desired",
                "labelSelectorPath": ".status.workers.selector",
            },
        },
        "schema": {"openAPIV3Schema": root},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["trun"],
            },
            "versions": [version],
        },
    }


def reference() -> str:
    """The API reference in Markdown."""
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [
        f"# {KIND} {VERSION}",
        "",
        "Generated from the operator's models by `make generate`. `kubectl explain trun.spec` says",
        "the same.",
    ]
    for part in ("spec", "status"):
        lines += ["", f"## {part}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        lines += _rows(schema["properties"][part], part)
    return "\n".join(lines) + "\n"


def _rows(schema: dict[str, Any], path: str) -> list[str]:
    rows = []
    for name, field in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        kind = field.get("type", "integer or string")
        if field.get("enum"):
            kind = " \\| ".join(str(v) for v in field["enum"])
        required = "required" if name in schema.get("required", []) else ""
        default = f"`{field['default']}`" if _is_plain(field.get("default")) else required
        rows.append(f"| `{where}` | {kind} | {default} | {field.get('description', '')} |")
        if not field.get("x-kubernetes-preserve-unknown-fields"):  # else it is Kubernetes' own
            rows += _rows(field.get("items", field), where + ("[]" if "items" in field else ""))
    return rows


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, dict | list)


def outputs() -> dict[Path, str]:
    """Path → text of everything generated."""
    head = "# Generated from operator/daybreak_operator/api by `make generate`.\n"
    text = head + yaml.safe_dump(crd(), sort_keys=False, width=100)
    return {CRD_PATH: text, CHART_PATH: text, REFERENCE_PATH: reference()}


def main() -> None:
    for path, text in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
