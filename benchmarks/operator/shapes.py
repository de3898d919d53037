"""What goes through the control plane: a run of the usual shape, and a plain Job like its own."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]
NODES_A_RUN = 4
SECRETS = ("datasets-reader", "runs-writer")
_ADDED_LABELS = ("batch.kubernetes.io/", "controller-uid", "job-name")


def run(name: str) -> Json:
    """A TrainingRun on four nodes with its data and checkpoints on object storage."""
    return {
        "apiVersion": "daybreak.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": {
            "workers": {
                "image": "ghcr.io/daybreak/trainer:0.1.0",
                "nodes": NODES_A_RUN,
                "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}},
            },
            "data": {
                "streams": [{"url": "s3://datasets/shapes", "secretRef": {"name": SECRETS[0]}}]
            },
            "recipe": {"preset": "prx-24h"},
            "budget": {"duration": "24h"},
            "checkpoint": {
                "storage": "s3://runs/checkpoints",
                "secretRef": {"name": SECRETS[1]},
                "interval": "10m",
            },
        },
    }


def plain_job(name: str, like: Json) -> Json:
    """A Job with the spec that the operator gave one of its own, without what the API server added
    to that; nobody owns it."""
    spec = copy.deepcopy(like["spec"])
    spec.pop("selector", None)
    metadata = spec["template"]["metadata"]
    metadata["labels"] = {
        key: value
        for key, value in (metadata.get("labels") or {}).items()
        if not key.startswith(_ADDED_LABELS)
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-1", "labels": dict(metadata["labels"])},
        "spec": spec,
    }
