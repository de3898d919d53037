"""Recipes and plans from the command line: what fits is printed, what does not is refused with the
field and the remedy, and exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from daybreak_cli.main import app
from daybreak_operator.api.crd import crd

RUN: dict[str, Any] = {
    "apiVersion": "daybreak.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "x"},
    "spec": {
        "budget": {"duration": "24h", "gpuHourPrice": "2.00"},
        "workers": {"image": "i", "nodes": 4, "resources": {"limits": {"nvidia.com/gpu": 8}}},
        "data": {"streams": [{"url": "s3://x"}]},
        "recipe": {"preset": "prx-24h"},
        "checkpoint": {"storage": "s3://y"},
    },
}


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def file(folder: Path, **spec: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, "spec": {**RUN["spec"], **spec}}))
    return str(path)


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_prx_24h_comes_to_what_its_fleet_costs_in_a_day(nodes: int, tmp_path: Path) -> None:
    """At 41 images/s a GPU at 512 px and a quarter of that at 1024: on 8, 16 and 32 GPUs all of the
    budget but what start and end take is trained, in the shares of the recipe."""
    gpus = 8 * nodes
    path = file(tmp_path, workers={**RUN["spec"]["workers"], "nodes": nodes})
    speeds = f"512={45 * gpus},1024={11 * gpus}"
    found = json.loads(run("plan", path, "--images-per-second", speeds, "--json"))
    first, second = found["stages"]
    assert found["devices"] == gpus
    hours = first["seconds"] / 3600 + second["seconds"] / 3600
    assert 23.7 < hours < 24 - 600 / 3600 + 0.01
    assert first["seconds"] / (hours * 3600) == pytest.approx(0.75, abs=0.01)
    assert first["cost"] + second["cost"] == pytest.approx(hours * gpus * 2.0)
    assert first["steps"] == first["samples"] // 1024


def test_what_cannot_fit_is_refused(tmp_path: Path) -> None:
    """Fixed steps beyond the budget, shares without one, and a budget that is gone at once."""
    stages = [{"resolution": 512, "steps": 10**6, "batchSize": 1024}]
    path = file(tmp_path, recipe={"preset": "prx-24h", "stages": stages})
    refused = run("plan", path, "--images-per-second", "512=9", code=2)
    assert "give them shares in place of steps" in refused
    assert "raise spec.budget.duration to" in refused
    path = file(tmp_path, budget={"duration": "5m"})
    assert "raise spec.budget" in run("plan", path, "--images-per-second", "512=9,1024=3", code=2)
    path = file(tmp_path, deadline="2099-12-01T08:00:00")
    wrong = run("plan", path, "--images-per-second", "512=9,1024=3", code=2)
    assert "spec.deadline" in wrong
    assert "offset" in wrong
    path = file(tmp_path, budget={})
    assert "set spec.budget.duration" in run("recipe", "validate", path, code=2)


def messages(schema: Any) -> set[str]:
    """Of all rules of the CRD."""
    if isinstance(schema, list):
        return set().union(*map(messages, schema))
    if not isinstance(schema, dict):
        return set()
    own = {rule["message"] for rule in schema.get("x-kubernetes-validations", [])}
    return own.union(*map(messages, schema.values()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": {"image": "i", "nodes": 4, "minNodes": 5}},
        {"workers": {"image": "i", "nodes": 4, "maxNodes": 3}},
        {"budget": {"maxCost": "9"}},
        {"budget": {"duration": "0s"}},
        {"budget": {"duration": "1h", "maxCost": "9", "gpuHourPrice": "0"}},
        {"budget": {"duration": "1h", "maxCost": "0.0", "gpuHourPrice": "2"}},
        {"compute": {"activationCheckpointing": "budget"}},
    ],
)
def test_what_the_api_server_refuses_is_not_planned(wrong: dict[str, Any], tmp_path: Path) -> None:
    """In the words of the CRD's own rule."""
    said = run("plan", file(tmp_path, **wrong), "--images-per-second", "512=9,1024=3", code=2)
    assert said.strip().rpartition("run.yaml: spec.")[2] in messages(crd())


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("example", ["gpus", "latent-24h", "micro", "consumer"])
def test_the_example_of_a_gpu_preset_fits_its_devices(example: str) -> None:
    """As its deviceBatchSize is; without one only what fits anyway is accepted."""
    path = ROOT / "manifests" / "examples" / f"{example}.yaml"
    found = json.loads(run("plan", str(path), "--json"))
    assert found["device"].startswith("NVIDIA-")
    assert 0 < found["compiled_shapes"] <= 16
    assert not [told for told in found["warnings"] if "is in neither" in told]


def test_what_a_device_cannot_hold_is_refused_with_a_batch_that_it_can(tmp_path: Path) -> None:
    """The named one is accepted; where none would do, what else would."""
    eight = {**RUN["spec"]["workers"], "nodes": 1}
    spec = {"workers": eight, "recipe": {"preset": "micro"}}
    h100 = ("--device", "NVIDIA H100 80GB HBM3")
    refused = run("plan", file(tmp_path, **spec), *h100, code=2)
    named = re.search(r"spec.compute.deviceBatchSize\s+to\s+(\d+)", refused)
    assert named is not None, refused
    compute = {"deviceBatchSize": int(named[1])}
    assert "memory of" in run("plan", file(tmp_path, **spec, compute=compute), *h100)
    huge = {"preset": "micro", "denoiser": {"hiddenSize": 16384}}
    refused = run("plan", file(tmp_path, **{**spec, "recipe": huge}), *h100, code=2)
    assert "activationCheckpointing" in refused


def test_speeds_are_given_by_stage_where_resolutions_are_alike(tmp_path: Path) -> None:
    """And frozen networks of unknown size, long warm-ups and many shapes are warned of."""
    text = {"path": "some/encoder", "paddingMultiple": 4}
    path = file(
        tmp_path,
        recipe={"preset": "micro", "text": text},
        compute={"compile": "blocks", "deviceBatchSize": 8},
    )
    given = "stage0=4,stage1=3,512=2,stage3=1"
    found = json.loads(run("plan", path, "--images-per-second", given, "--json"))
    assert [stage["images_per_second"] for stage in found["stages"]] == [4, 3, 2, 1]
    warnings = "\n".join(found["warnings"])
    for said in ("some/encoder", "warmupSteps (2500)", "warmupSteps (500)", "shapes are compiled"):
        assert said in warnings
    wrong = run("plan", path, "--images-per-second", "256=4", code=2)
    assert "stage0=SPEED,stage1=SPEED" in wrong


def test_recipes_are_shown_compared_and_checked(tmp_path: Path) -> None:
    """A preset or a file; a wrong field is named."""
    assert yaml.safe_load(run("recipe", "show", "smoke"))["denoiser"]["hiddenSize"] == 32
    assert "denoiser.hiddenSize" in run("recipe", "diff", "smoke", "digits")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("preset: smoke\noptimizer: {learningrate: 1}\n")
    assert "recipe.optimizer.learningrate" in run("recipe", "validate", str(wrong), code=2)
    assert "is no preset" in run("recipe", "show", "smok", code=2)
    path = file(tmp_path, workers={"image": "i", "nodez": 3})
    wrong_field = run("plan", path, code=2)
    assert "spec.workers.nodez" in wrong_field
    assert "no such field" in " ".join(wrong_field.split())


def test_a_plan_of_a_run_without_gpus_says_what_its_figures_are_of(tmp_path: Path) -> None:
    path = file(tmp_path, workers={"image": "i"}, recipe={"preset": "digits"})
    (told,) = json.loads(run("plan", path, "--json"))["warnings"]
    assert "asks for no GPU" in told
    assert "NVIDIA H200" in told
    assert "steps are the recipe's" in " ".join(run("plan", path).split())
    given = json.loads(run("plan", path, "--images-per-second", "16=9", "--json"))
    assert not given["warnings"]
