"""The API server refuses a wrong run at once, and says which field is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config
from runs import CRD

from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.crds import await_crd
from daybreak_operator.api import crd
from daybreak_operator.cluster import Cluster as OperatorsView

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
VALID: dict[str, Any] = {
    "apiVersion": "daybreak.dev/v1alpha1",
    "kind": "TrainingRun",
    "metadata": {"name": "valid"},
    "spec": {
        "workers": {"image": "trainer"},
        "data": {"streams": [{"url": "s3://bucket/data"}]},
        "recipe": {"preset": "digits"},
        "checkpoint": {"storage": "s3://bucket/checkpoints"},
        "export": {"storage": "s3://bucket/models"},
    },
}


@pytest.fixture(scope="module")
def cluster(devcluster: Cluster) -> Cluster:
    devcluster.kubectl("apply", "-f", str(ROOT / "manifests/base/crd.yaml"))
    await_crd(devcluster, CRD)
    return devcluster


async def test_runs_are_known_by_their_uids_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator asks for nothing but metadata, in pages, to find those that are gone."""
    cluster.kubectl("create", "namespace", "uids")
    bodies = [VALID | {"metadata": {"name": f"run-{n}", "namespace": "uids"}} for n in range(3)]
    listed = {"apiVersion": "v1", "kind": "List", "items": bodies}
    cluster.kubectl("create", "-f", "-", input=json.dumps(listed))
    made = cluster.kubectl("get", "trainingruns", "-n", "uids", "-o", "json").stdout
    monkeypatch.setattr("daybreak_operator.cluster._PAGE", 2)
    configuration = client.Configuration()
    await config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        found = await OperatorsView(api).run_uids("uids")
    assert found == {run["metadata"]["uid"] for run in json.loads(made)["items"]}


def changed(path: str, value: Any) -> str:
    """The valid run with one field replaced, or removed where `value` is None."""
    body = copy.deepcopy(VALID)
    *parents, last = path.split(".")
    at: Any = body
    for name in parents:
        at = at[int(name)] if name.isdecimal() else at.setdefault(name, {})
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(body)


def create(cluster: Cluster, namespace: str, body: str, *, dry: bool = True) -> str:
    """What kubectl answers: stdout, and stderr where it was refused."""
    arguments = ["create", "-n", namespace, "-f", "-"] + (["--dry-run=server"] if dry else [])
    done = cluster.kubectl(*arguments, input=body, check=False)
    return str(done.stdout) + str(done.stderr)


def test_the_generated_files_are_up_to_date() -> None:
    """CRD, chart and reference are those of the models: `make generate` changes nothing."""
    for path, text in crd.outputs().items():
        assert path.read_text() == text, f"{path} is out of date"


@pytest.mark.parametrize("example", sorted((ROOT / "manifests/examples").glob("*.yaml")))
def test_every_example_is_accepted(cluster: Cluster, namespace: str, example: Path) -> None:
    """What the documentation shows must work."""
    text = example.read_text()
    answer = create(cluster, namespace, text)
    assert answer.count("created") == len(text.split("\n---\n")), answer


PVC = {"claimName": "c"}
STAGE = {"resolution": 16, "batchSize": 8}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("metadata.name", "9lives", "metadata.name"),
        ("metadata.name", "a" * 46, "metadata.name must be at most 45"),
        ("spec.workers.nodes", 0, "spec.workers.nodes"),
        ("spec.budget", {"maxCost": "9"}, "budget.maxCost needs budget.gpuHourPrice"),
        ("spec.budget", {"gpuHourPrice": "0.0"}, "budget.gpuHourPrice must be more than 0"),
        ("spec.budget.duration", "0s", "budget.duration must be longer than 0s"),
        ("spec.budget.maxCost", 12, "spec.budget.maxCost"),
        ("spec.deadline", "tomorrow", "spec.deadline"),
        ("spec.deadline", "2099-12-01T08:00:00", "and a time zone, such as 2026-12-01T08:00:00Z"),
        ("spec.deadline", "2099-02-30T08:00:00Z", "deadline needs a date, a time and a time zone"),
        ("spec.workers.minNodes", 2, "workers.nodes must not be below workers.minNodes"),
        (
            "spec.compute",
            {"activationCheckpointing": "budget"},
            "compute.activationCheckpointing: budget needs compute.compile: blocks",
        ),
        ("spec.checkpoint.secretRef", {"name": "keys/log"}, "spec.checkpoint.secretRef.name"),
        ("spec.failurePolicy.window", "99999999h", "a duration must be at most 87600h"),
        ("spec.checkpoint.interval", "87600h1s", "a duration must be at most 87600h"),
        ("spec.healthPolicy.progressDeadline", "soon", "spec.healthPolicy.progressDeadline"),
        ("spec.healthPolicy.startupDeadline", "0s", "startupDeadline must be longer than 0s"),
        ("spec.healthPolicy.progressDeadline", "0m", "progressDeadline must be longer than 0s"),
        ("spec.checkpoint.acceptChanges", ["seed"], "spec.checkpoint.acceptChanges"),
        (
            "spec.workers",
            {"image": "i", "nodes": 3, "maxNodes": 2},
            "workers.nodes must not exceed workers.maxNodes",
        ),
        (
            "spec.workers",
            {"image": "i", "nodes": 3, "minNodes": 4, "maxNodes": 3},
            "workers.minNodes must not exceed workers.maxNodes",
        ),
        ("spec.workers.processesPerNode", 0, "processesPerNode must be auto or a number"),
        ("spec.workers.processesPerNode", "many", "processesPerNode must be auto or a number"),
        ("spec.workers.image", None, "spec.workers.image"),
        ("spec.workers.resources", {"limits": "8"}, "spec.workers.resources.limits"),
        ("spec.workers.template", {"spec": []}, "spec.workers.template.spec"),
        (
            "spec.workers.template",
            {"spec": {"containers": [{"image": "i"}]}},
            "spec.workers.template.spec.containers[0].name",
        ),
        ("spec.checkpoint.storage", "ftp://me:secret@host/c", "a URL must not hold a password"),
        ("spec.data.streams.0.url", "s3://id:key@b/d", "a URL must not hold a password"),
        ("spec.data.streams", [], "spec.data.streams"),
        ("spec.data.streams", [{}], "data.streams: set exactly one of url"),
        (
            "spec.data.streams",
            [{"url": "s3://x", "persistentVolumeClaim": PVC}],
            "data.streams: set exactly one of url",
        ),
        ("spec.data.streams.0.weight", -1, "weight"),
        ("spec.data.prepare", {}, "data.prepare: set exactly one of source"),
        ("spec.data.prepare", {"source": "photos"}, "spec.data.prepare.source"),
        ("spec.data.prepare", {"source": "s3://x"}, "say what to add, latents or embeddings"),
        ("spec.data.prepare", {"source": "shapes", "stream": 1}, "number of one of data.streams"),
        ("spec.data.prepare", {"source": "shapes", "buckets": True}, "is for a folder of images"),
        ("spec.data.prepare", {"persistentVolumeClaim": PVC}, "needs the side of the images"),
        (
            "spec.data.prepare",
            {"source": "s3://x", "latents": "a", "resolution": 9},
            "leave out resolution",
        ),
        (
            "spec.data.prepare",
            {"persistentVolumeClaim": PVC, "dropImages": True},
            "dropImages leaves nothing to train on",
        ),
        ("spec.checkpoint", {}, "checkpoint: set exactly one of storage"),
        ("spec.checkpoint.persistentVolumeClaim", PVC, "checkpoint: set exactly one of storage"),
        ("spec.checkpoint.interval", "soon", "spec.checkpoint.interval"),
        ("spec.checkpoint.keepLast", 1, "spec.checkpoint.keepLast"),
        (
            "spec.checkpoint",
            {"persistentVolumeClaim": {"claimName": "c", "subPath": "../x"}},
            "subPath must be a relative path",
        ),
        ("spec.checkpoint.resumeFrom", "s3://b/run-u/attempt-1", "spec.checkpoint.resumeFrom"),
        ("spec.checkpoint.resumeFrom", "s3://b/../run-u/attempt-1/step-9", "path without '..'"),
        ("spec.checkpoint.resumeFrom", "x/run-u/attempt-1/step-9", "resumeFrom must be a URL, or"),
        ("spec.export", {}, "export: set exactly one of storage"),
        ("spec.export.format", "onnx", "spec.export.format"),
        ("spec.evaluation.benchmark", "imagenet", "spec.evaluation.benchmark"),
        ("spec.evaluation.prompts", ["x" * 1000] * 17, "at most 16384 characters in all"),
        ("spec.failurePolicy.maxRestarts", -1, "spec.failurePolicy.maxRestarts"),
        ("spec.terminationGracePeriod", "2 minutes", "spec.terminationGracePeriod"),
        ("spec.recipe", {}, "spec.recipe.preset"),
        ("spec.recipe.stages", [{"resolution": 16}], "spec.recipe.stages"),
        ("spec.recipe.stages", [STAGE], "give all of them steps, or all of them a share"),
        (
            "spec.recipe.stages",
            [STAGE | {"steps": 9}, STAGE | {"share": 1}],
            "give all of them steps, or all of them a share",
        ),
        ("spec.recipe.stages", [STAGE | {"steps": 9, "share": 1}], "either steps or a share"),
        (
            "spec.recipe.stages",
            [STAGE | {"share": 0.7}, STAGE | {"share": 0.2}],
            "their shares must add up to 1",
        ),
        ("spec.recipe.stages", [STAGE | {"share": 1}], "nothing says how long that is: set budget"),
        ("spec.recipe.preset", "prx-24h", "nothing says how long that is: set budget"),
        ("spec.recipe.stages", [STAGE | {"steps": 9, "warmupSteps": 1}], "first stage's warm-up"),
        (
            "spec.recipe",
            {"preset": "digits", "denoiser": {"patchSize": 3}, "stages": [STAGE | {"steps": 9}]},
            "must be a multiple of recipe.denoiser.patchSize",
        ),
        (
            "spec.recipe.denoiser",
            {"hiddenSize": 256, "heads": 6},
            "recipe.denoiser.heads must divide recipe.denoiser.hiddenSize",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    cluster: Cluster, namespace: str, path: str, value: Any, message: str
) -> None:
    """Each rule of the schema, and the words a user sees."""
    answer = create(cluster, namespace, changed(path, value))
    assert message in answer
    assert "created" not in answer


def test_the_recipe_is_fixed_and_the_size_is_not(cluster: Cluster, namespace: str) -> None:
    """A change of the recipe is refused; `kubectl scale` works; no default enters the recipe."""
    assert "created" in create(cluster, namespace, json.dumps(VALID), dry=False)
    patch = ("patch", "trun/valid", "-n", namespace, "--type=merge", "-p")
    refused = cluster.kubectl(*patch, '{"spec":{"recipe":{"seed":1}}}', check=False)
    assert "recipe is immutable" in refused.stderr
    cluster.kubectl("scale", "trun/valid", "-n", namespace, "--replicas=3")
    stored = json.loads(cluster.kubectl("get", "trun/valid", "-n", namespace, "-o", "json").stdout)
    assert stored["spec"]["workers"]["nodes"] == 3
    assert stored["spec"]["recipe"] == {"preset": "digits"}


def test_a_limit_is_raised_or_replaced_and_not_removed(cluster: Cluster, namespace: str) -> None:
    """Stages with shares would be refused by the next attempt, which ends the run."""
    body = changed("spec.budget", {"duration": "1h"})
    assert "created" in create(cluster, namespace, body, dry=False)
    patch = ("patch", "trun/valid", "-n", namespace, "--type=merge", "-p")
    refused = cluster.kubectl(*patch, '{"spec":{"budget":null}}', check=False)
    assert "a run that has a limit keeps one" in refused.stderr
    cluster.kubectl(*patch, '{"spec":{"budget":{"duration":"2h"}}}')
    later = '{"spec":{"budget":null,"deadline":"2099-12-01T08:00:00Z"}}'
    cluster.kubectl(*patch, later)


def test_what_a_plan_needs_may_be_any_limit(cluster: Cluster, namespace: str) -> None:
    """Shares of a budget's time, of a deadline's, and shares that binary numbers only come near."""
    thirds = [STAGE | {"share": share} for share in (0.1, 0.2, 0.7)]
    for limit in ({"budget": {"duration": "1h"}}, {"deadline": "2099-12-01T08:00:00.5+01:00"}):
        body = json.loads(changed("spec.recipe.stages", thirds))
        body["spec"] |= limit
        assert "created" in create(cluster, namespace, json.dumps(body))


def test_null_switches_a_trick_off(cluster: Cluster, namespace: str) -> None:
    """Where the recipe lets a field be null, the API server keeps the null: it says "off" to what
    the preset has on, and is not the same as saying nothing."""
    body = changed("spec.recipe.objective", {"routing": None, "masking": {"share": 0.5}})
    created = create(cluster, namespace, body, dry=False)
    assert "created" in created
    stored = cluster.kubectl("get", "-n", namespace, "trun/valid", "-o", "json").stdout
    objective = json.loads(stored)["spec"]["recipe"]["objective"]
    assert objective == {"routing": None, "masking": {"share": 0.5}}
