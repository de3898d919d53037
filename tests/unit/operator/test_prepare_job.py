"""The Job that prepares a run's data, as the API server gets it."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.children.prepare import prepare_job
from daybreak_trainer.contract import ENV_PREPARE, EmbeddingSettings, PrepareSettings

STREAMS = [
    {"url": "s3://d", "secretRef": {"name": "datasets"}},
    {"persistentVolumeClaim": {"claimName": "prepared", "subPath": "photos"}},
]


def made(prepare: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "workers": {"image": "trainer:1"},
        "data": {"streams": STREAMS, "prepare": prepare},
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
    }
    run = TrainingRun(
        name="r",
        namespace="n",
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(spec),
        status=TrainingRunStatus(),
        raw_recipe={"preset": "smoke"},
        labels=labels or {},
    )
    return prepare_job(run)


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def told(job: dict[str, Any]) -> PrepareSettings:
    environment = {entry["name"]: entry.get("value") for entry in container(job)["env"]}
    return PrepareSettings.model_validate_json(environment[ENV_PREPARE])


def test_the_job_is_the_runs_and_no_attempts() -> None:
    """Owned, labelled by run and role, and queued as the run is."""
    queue = {"kueue.x-k8s.io/queue-name": "research"}
    job = made({"source": "shapes", "nodes": 4}, labels=queue | {"team": "x"})
    labels = {
        "daybreak.dev/run": "r",
        "daybreak.dev/role": "prepare",
        "app.kubernetes.io/managed-by": "daybreak",
    }
    assert job["metadata"]["name"] == "r-prepare"
    assert job["metadata"]["labels"] == labels | queue
    assert job["spec"]["template"]["metadata"]["labels"] == labels
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("u", True)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (4, 4)


def test_a_crash_is_tried_again_and_bad_data_is_not() -> None:
    """Nor is a pod counted that was evicted, or told to stop."""
    spec = made({"source": "shapes"})["spec"]
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]) == (3, 0)
    final, disrupted, stopped = spec["podFailurePolicy"]["rules"]
    assert final["action"] == "FailJob"
    assert {64, 65} <= set(final["onExitCodes"]["values"])
    assert final["onExitCodes"]["containerName"] == container({"spec": spec})["name"]
    assert disrupted["action"] == stopped["action"] == "Ignore"
    assert stopped["onExitCodes"]["values"] == [75, 143]


def test_pods_write_to_the_stream_and_read_the_source() -> None:
    """With the stream's own Secret or volume, here writable; the source's is not."""
    job = made(
        {
            "persistentVolumeClaim": {"claimName": "raw"},
            "stream": 1,
            "resolution": 512,
            "buckets": True,
            "shardSize": "128Mi",
            "embeddings": {"encoder": "t5", "lowerCase": True},
        }
    )
    mounts = {mount["mountPath"]: mount for mount in container(job)["volumeMounts"]}
    assert mounts["/mnt/daybreak/source"].get("readOnly")
    assert mounts["/mnt/daybreak/data-1"] == {
        "name": "volume-data-1",
        "mountPath": "/mnt/daybreak/data-1",
        "subPath": "photos",
    }
    settings = told(job)
    assert (settings.source, settings.out.url) == ("/mnt/daybreak/source", "/mnt/daybreak/data-1")
    assert (settings.resolution, settings.buckets) == (512, True)
    assert settings.shard_bytes == 128 << 20
    assert settings.embeddings == EmbeddingSettings(encoder="t5", lower_case=True)
    bucket = made({"source": "digits"})
    assert (told(bucket).out.url, told(bucket).out.role) == ("s3://d", "data-0")
    mounts = {mount["mountPath"]: mount for mount in container(bucket)["volumeMounts"]}
    assert "/etc/daybreak/secrets/data-0" in mounts


def test_the_template_is_laid_over_and_holds_no_token() -> None:
    """What the user says of the container named prepare is merged into it."""
    template = {
        "metadata": {"labels": {"team": "x", "daybreak.dev/attempt": "1"}},
        "spec": {
            "nodeSelector": {"disk": "fast"},
            "containers": [{"name": "prepare", "env": [{"name": "HF_TOKEN", "value": "x"}]}],
        },
    }
    job = made({"source": "shapes", "image": "own:2", "template": template})
    pod = job["spec"]["template"]["spec"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["team"] == "x"
    assert "daybreak.dev/attempt" not in labels, "its pod would pass for a worker"
    assert pod["automountServiceAccountToken"] is False
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container(job)["image"] == "own:2"
    assert container(job)["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "HF_TOKEN", "value": "x"} in container(job)["env"]
