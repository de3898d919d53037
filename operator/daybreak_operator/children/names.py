"""Names and labels of a run's objects."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.run import API_VERSION, KIND, TrainingRun
from daybreak_trainer.contract import LABEL_ATTEMPT, LABEL_ROLE, LABEL_RUN


def job_name(run: TrainingRun, attempt: int) -> str:
    return f"{run.name}-{attempt}"


def service_name(run: TrainingRun) -> str:
    return f"{run.name}-workers"


def config_name(run: TrainingRun, recipe_hash: str) -> str:
    return f"{run.name}-recipe-{recipe_hash}"


def prepare_name(run: TrainingRun) -> str:
    return f"{run.name}-prepare"


def selector(run: TrainingRun) -> str:
    return f"{LABEL_RUN}={run.name}"


def worker_selector(run: TrainingRun) -> str:
    """Of the pods that an autoscaler measures: not of those that have prepared the data."""
    return f"{selector(run)},!{LABEL_ROLE}"


def labels(run: TrainingRun, attempt: int | None = None) -> dict[str, str]:
    own = {LABEL_RUN: run.name, "app.kubernetes.io/managed-by": "daybreak"}
    return own | ({LABEL_ATTEMPT: str(attempt)} if attempt is not None else {})


def metadata(run: TrainingRun, name: str, attempt: int | None = None) -> dict[str, Any]:
    """Metadata of a child: the run owns it, so deleting the run deletes it."""
    return {
        "name": name,
        "namespace": run.namespace,
        "labels": labels(run, attempt),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": run.name,
                "uid": run.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
