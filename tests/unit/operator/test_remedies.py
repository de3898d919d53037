"""What a user is told to change where a pod finds no node or does not start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simulated_history import spec_of

from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.observation import PodView
from daybreak_operator.remedies import of_placement, of_start

OVERLAY = {"spec": {"containers": [{"name": "proxy", "image": "p:2"}, {"name": "trainer"}]}}


def pod(container: str = "trainer", reason: str = "ErrImagePull", role: str = "") -> PodView:
    waiting = {"name": container, "state": {"waiting": {"reason": reason, "message": "no"}}}
    metadata = {"name": "p", "uid": "p", "labels": {"daybreak.dev/role": role}}
    return PodView.of({"metadata": metadata, "status": {"containerStatuses": [waiting]}})


def spec(prepare: dict[str, Any] | None = None, **workers: Any) -> TrainingRunSpec:
    given = spec_of(workers={"image": "w:1"} | workers)
    if prepare is not None:
        given["data"] = given["data"] | {"prepare": {"source": "digits"} | prepare}
    return TrainingRunSpec.model_validate(given)


@pytest.mark.parametrize(
    ("given", "waits", "said"),
    [
        (spec(template=OVERLAY), pod(), "spec.workers.image (w:1)"),
        (spec(template=OVERLAY), pod("proxy"), "container proxy in spec.workers.template (p:2)"),
        (spec({}), pod("prepare", role="prepare"), "spec.workers.image (w:1)"),
        (spec({"image": "q"}), pod("prepare", role="prepare"), "spec.data.prepare.image (q)"),
        (spec(), pod(reason="CreateContainerConfigError"), "spec.workers.template (container tra"),
    ],
)
def test_the_field_of_what_cannot_start_is_named(
    given: TrainingRunSpec, waits: PodView, said: str
) -> None:
    assert said in of_start(given, waits)


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (
            "",
            "spec.data.streams[0].persistentVolumeClaim.subPath: digit, "
            "spec.checkpoint.persistentVolumeClaim.subPath: c",
        ),
        (
            "prepare",
            "spec.data.prepare.persistentVolumeClaim.subPath: photos, "
            "spec.data.streams[0].persistentVolumeClaim.subPath: digit",
        ),
    ],
)
def test_a_folder_that_a_volume_lacks_is_one_of_the_claims(role: str, said: str) -> None:
    """Those that such a pod mounts, by field; a kubelet names no field of ours."""
    at = {name: {"claimName": "v", "subPath": name} for name in ("digit", "c", "photos")}
    given = spec_of(
        data={
            "streams": [{"persistentVolumeClaim": at["digit"]}, {"url": "s3://d"}],
            "prepare": {"persistentVolumeClaim": at["photos"], "resolution": 16},
        },
        checkpoint={"persistentVolumeClaim": at["c"]},
        export={"persistentVolumeClaim": {"claimName": "whole"}},
    )
    message = "failed to prepare subPath for volumeMount 'x' of container 'trainer'"
    waits = replace(pod(role=role), waiting=f"CreateContainerConfigError: {message}")
    remedy = of_start(TrainingRunSpec.model_validate(given), waits)
    assert remedy == f"correct the folder that is not there ({said}), or make it in its volume"


def test_what_finds_no_node_says_what_it_asks_for() -> None:
    """A limit without a request is one."""
    gpus = {"limits": {"nvidia.com/gpu": 8, "memory": "9Gi"}, "requests": {"memory": "8Gi"}}
    overlay = {"spec": {"nodeSelector": {"pool": "h200"}}}
    assert of_placement(spec(resources=gpus, template=overlay), pod()) == (
        "each of spec.workers.nodes (2) asks for nvidia.com/gpu: 8, memory: 8Gi "
        "(spec.workers.resources) of nodes that fit nodeSelector in spec.workers.template"
    )
