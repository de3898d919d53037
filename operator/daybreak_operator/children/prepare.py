"""The Indexed Job that prepares a run's data (`data.prepare`), before there is an attempt.

Pods share the work by their index and go on where one before them was stopped. A pod that crashes
is started again, a few times; one that ends with a code that another pod would end with too fails
the Job at once, and its termination message says why.
"""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.prepare import Prepare
from daybreak_operator.api.quantity import quantity
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.types import PersistentVolumeClaim, SecretRef
from daybreak_operator.children import names, pods, queueing
from daybreak_operator.children.overlay import overlaid
from daybreak_trainer import contract
from daybreak_trainer.contract import (
    FINAL_EXIT_CODES,
    LABEL_ROLE,
    ROLE_PREPARE,
    SOURCE_ROLE,
    UNCHARGED_EXIT_CODES,
    EmbeddingSettings,
    PrepareSettings,
    Role,
    StreamSettings,
)

CONTAINER = "prepare"
_RETRIES = 3
"""Of each index."""


def prepare_job(run: TrainingRun) -> dict[str, Any]:
    """Of a run that has `data.prepare`. Created once and never re-applied."""
    spec = _of(run)
    role = {LABEL_ROLE: ROLE_PREPARE}
    template = overlaid(_pod(run, role), spec.template, CONTAINER)
    metadata = names.metadata(run, names.prepare_name(run))
    metadata["labels"] |= role | queueing.job_labels(run)
    # No gang: a pod works by itself.
    metadata["annotations"] = queueing.job_annotations(run, template["spec"], nodes=1)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": spec.nodes,
            "parallelism": spec.nodes,
            "backoffLimitPerIndex": _RETRIES,
            # One part less is no dataset: what the others still make would be for nothing.
            "maxFailedIndexes": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": CONTAINER,
                            "operator": "In",
                            "values": sorted(int(code) for code in FINAL_EXIT_CODES),
                        },
                    },
                    # Evicted, preempted, of a node that is gone, or told to stop by a queue that
                    # takes its quota back: no retry is used up.
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "Ignore",
                        "onExitCodes": {
                            "containerName": CONTAINER,
                            "operator": "In",
                            "values": sorted(int(code) for code in UNCHARGED_EXIT_CODES),
                        },
                    },
                ]
            },
            "template": template,
        },
    }


def settings(run: TrainingRun) -> PrepareSettings:
    """What the pods are told."""
    spec = _of(run)
    role = _out_role(spec)
    url = run.spec.data.streams[spec.stream].url
    return PrepareSettings(
        name=run.name,
        namespace=run.namespace,
        nodes=spec.nodes,
        source=spec.source or str(contract.VOLUMES_DIR / SOURCE_ROLE),
        out=StreamSettings(url=url or str(contract.VOLUMES_DIR / role), role=role),
        resolution=spec.resolution,
        count=spec.count,
        seed=spec.seed,
        buckets=spec.buckets,
        multiple=spec.multiple,
        encoding=spec.encoding,
        jpeg_quality=spec.jpeg_quality,
        shard_bytes=int(quantity(spec.shard_size)),
        skip_unreadable=spec.skip_unreadable,
        latents=spec.latents,
        embeddings=(EmbeddingSettings(**spec.embeddings.model_dump()) if spec.embeddings else None),
        drop_images=spec.drop_images,
    )


def claims(run: TrainingRun) -> dict[Role, PersistentVolumeClaim]:
    """Role → the claim mounted for it; that of the stream is written to."""
    spec = _of(run)
    found = {
        SOURCE_ROLE: spec.persistent_volume_claim,
        _out_role(spec): run.spec.data.streams[spec.stream].persistent_volume_claim,
    }
    return {role: claim for role, claim in found.items() if claim is not None}


def secrets(run: TrainingRun) -> dict[Role, SecretRef]:
    """Role → the Secret mounted for it."""
    spec = _of(run)
    found = {
        SOURCE_ROLE: spec.secret_ref,
        _out_role(spec): run.spec.data.streams[spec.stream].secret_ref,
    }
    return {role: secret for role, secret in found.items() if secret is not None}


def _of(run: TrainingRun) -> Prepare:
    assert run.spec.data.prepare is not None  # asked of such runs only
    return run.spec.data.prepare


def _out_role(spec: Prepare) -> Role:
    return f"data-{spec.stream}"


def _pod(run: TrainingRun, role: dict[str, str]) -> dict[str, Any]:
    spec = _of(run)
    mounted = [
        pods.mounted_claim(role, claim, read_only=role == SOURCE_ROLE)
        for role, claim in claims(run).items()
    ]
    mounted += [pods.mounted_secret(role, secret) for role, secret in secrets(run).items()]
    work = {"name": "work", "mountPath": str(contract.WORK_DIR)}
    container = {
        "name": CONTAINER,
        "image": spec.image or run.spec.workers.image,
        "command": ["python", "-m", "daybreak_trainer.prepare"],
        "env": [
            pods.text_env(contract.ENV_PREPARE, settings(run).to_json()),
            pods.field_env(contract.ENV_NODE_INDEX, pods.COMPLETION_INDEX),
            pods.field_env(contract.ENV_POD_NAME, "metadata.name"),
        ],
        "resources": spec.resources,
        "securityContext": pods.SECURE_CONTAINER,
        "volumeMounts": [work, *(mount for _, mount in mounted)],
    }
    return {
        "metadata": {
            "labels": names.labels(run) | role,
            "annotations": queueing.pod_annotations(run),
        },
        "spec": {
            "restartPolicy": "Never",
            **pods.ANY_POD,
            "containers": [container],
            "volumes": [
                {"name": "work", "emptyDir": {"sizeLimit": spec.scratch}},
                *(volume for volume, _ in mounted),
            ],
        },
    }
