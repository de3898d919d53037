"""The examples are what people copy: they fit the API, resolve, and bring or name what they need.

`tests/cluster/test_crd_rules.py` has the API server look at them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_trainer.recipe import resolve

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "manifests/examples").glob("*.yaml"))


def found(value: Any, name: str) -> set[str]:
    """The values of all fields of a name, at any depth."""
    if isinstance(value, list):
        return {text for item in value for text in found(item, name)}
    if not isinstance(value, dict):
        return set()
    here = {str(value[name])} if name in value else set()
    return here | {text for item in value.values() for text in found(item, name)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_copied(example: Path) -> None:
    """No field that the API lacks, a recipe that there is, a command for each Secret, and, where it
    has claims, all that its run mounts."""
    text = example.read_text()
    documents = list(yaml.safe_load_all(text))
    (run,) = (each for each in documents if each["kind"] == "TrainingRun")
    TrainingRunSpec.model_validate(run["spec"])
    resolve(run["spec"]["recipe"])
    for secret in (found(ref, "name") for ref in references(run["spec"])):
        assert f"kubectl create secret generic {secret.pop()}" in text
    claims = {
        each["metadata"]["name"] for each in documents if each["kind"] == "PersistentVolumeClaim"
    }
    assert not claims or claims == found(run["spec"], "claimName")


def references(spec: dict[str, Any]) -> list[dict[str, str]]:
    """Its Secrets."""
    places = [*spec["data"]["streams"], spec["checkpoint"], spec.get("export", {})]
    return [place["secretRef"] for place in places if "secretRef" in place]
