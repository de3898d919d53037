"""Pods that prepare data, on the control plane and under the `restricted` level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daybreak_cli.playground import create_claim
from daybreak_devcluster.cluster import Cluster
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.children.prepare import prepare_job
from daybreak_trainer.contract import LABEL_ROLE, ROLE_PREPARE, Termination
from daybreak_trainer.prepare.joined import PREPARED

pytestmark = pytest.mark.cluster


def made(namespace: str, prepare: dict[str, Any]) -> dict[str, Any]:
    """The Job of a run that is not there, so nobody owns it."""
    spec: dict[str, Any] = {
        "workers": {"image": "ghcr.io/daybreak/trainer:0.1.0"},
        "data": {
            "streams": [{"persistentVolumeClaim": {"claimName": "datasets", "subPath": "made"}}],
            "prepare": prepare,
        },
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
    }
    run = TrainingRun(
        name="r",
        namespace=namespace,
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(spec),
        status=TrainingRunStatus(),
        raw_recipe={"preset": "smoke"},
    )
    job = prepare_job(run)
    del job["metadata"]["ownerReferences"]
    return job


def ended(cluster: Cluster, namespace: str, job: dict[str, Any], condition: str) -> dict[str, Any]:
    """The Job's status when it has the condition."""
    there = ("-n", namespace)
    cluster.kubectl("create", *there, "-f", "-", input=json.dumps(job))
    cluster.kubectl(
        *("wait", *there, "job/r-prepare", f"--for=condition={condition}", "--timeout=150s"),
        timeout=160,
    )
    found = cluster.kubectl("get", *there, "job/r-prepare", "-o", "json").stdout
    status: dict[str, Any] = json.loads(found)["status"]
    return status


def test_two_pods_prepare_what_the_workers_read(
    devcluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """On a volume that one of them makes a folder on."""
    create_claim(devcluster, namespace, "datasets", tmp_path / "datasets")
    (tmp_path / "datasets" / "made").mkdir()
    (tmp_path / "datasets" / "made").chmod(0o777)
    job = made(namespace, {"source": "shapes", "count": 600, "resolution": 8, "nodes": 2})
    status = ended(devcluster, namespace, job, "Complete")
    assert status["succeeded"] == 2, status
    assert json.loads((tmp_path / "datasets/made" / PREPARED).read_text())["samples"] == 600


def test_data_that_cannot_be_prepared_fails_the_job_at_once(
    devcluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """With one pod, whose message says why."""
    create_claim(devcluster, namespace, "datasets", tmp_path / "datasets")
    (tmp_path / "datasets" / "made").mkdir()
    (tmp_path / "datasets" / "made").chmod(0o777)
    create_claim(devcluster, namespace, "raw", tmp_path / "raw")
    prepare = {"persistentVolumeClaim": {"claimName": "raw"}, "resolution": 8}
    status = ended(devcluster, namespace, made(namespace, prepare), "Failed")
    assert status["failed"] == 1, status
    (reason,) = [c["reason"] for c in status["conditions"] if c["type"] == "Failed"]
    assert reason == "PodFailurePolicy"
    selector = f"{LABEL_ROLE}={ROLE_PREPARE}"
    found = devcluster.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json").stdout
    (pod,) = json.loads(found)["items"]
    state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert state["exitCode"] == 65
    said = Termination.decode(state["message"])
    assert said is not None
    assert said.reason == "BadData"
    assert "no images here" in said.message
