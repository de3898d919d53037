"""The Indexed Job of one attempt: a gang of worker pods that lives and dies together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import sha256
from math import ceil
from typing import Any

from daybreak_operator.api.duration import Interval, seconds
from daybreak_operator.api.quantity import quantity
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import EvaluationSpec, TrainingRunSpec, Workers
from daybreak_operator.api.types import PersistentVolumeClaim, SecretRef
from daybreak_operator.children import names, pods, queueing, resume_from
from daybreak_operator.children.overlay import keeping_off, overlaid
from daybreak_operator.observation import LIMITS_HASH, WORKERS_HASH, FixedRecipe
from daybreak_trainer import contract
from daybreak_trainer.contract import (
    BudgetSettings,
    ComputeSettings,
    EvaluationSettings,
    ExtractorSettings,
    HealthSettings,
    RunSettings,
    StreamSettings,
)

TRAINER = "trainer"
_GPU = re.compile(r"[^/]+/(gpu|gpu\.shared|mig-[^/]+)|gpu\.intel\.com/(i915|xe)")
"""Names of resources that are counted in devices, or in parts of one (MIG, time slices): not those
that are a device's memory or load, such as aliyun.com/gpu-mem and gpu.intel.com/millicores."""


def job(
    run: TrainingRun,
    attempt: int,
    recipe: FixedRecipe,
    *,
    nodes: int,
    avoided: Sequence[str] = (),
    held_seconds: float = 0.0,
) -> dict[str, Any]:
    """Created once and never re-applied: a queue such as Kueue writes into it.

    `avoided` names nodes that the pods keep away from; `held_seconds` is what the run has used of
    its budget before.
    """
    told = settings(run, attempt, recipe, nodes=nodes, held_seconds=held_seconds)
    template = overlaid(_pod(run, attempt, recipe, told), run.spec.workers.template, TRAINER)
    metadata = names.metadata(run, names.job_name(run, attempt), attempt)
    metadata["labels"] |= queueing.job_labels(run)
    metadata["annotations"] = queueing.job_annotations(run, template["spec"], nodes)
    metadata["annotations"] |= {
        WORKERS_HASH: workers_hash(run.spec.workers),
        LIMITS_HASH: limits_hash(run.spec),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": TRAINER,
                            "operator": "NotIn",
                            "values": [0],
                        },
                    },
                ]
            },
            "template": keeping_off(template, avoided),
        },
    }


def workers_hash(workers: Workers) -> str:
    """Of what the pods are made by, and not of their number. The fields are named: one that a later
    version adds changes no attempt that waits."""
    parts = (workers.image, workers.processes_per_node, workers.resources, workers.template)
    return _hash(parts)


def limits_hash(spec: TrainingRunSpec) -> str:
    """Of the limits that the trainer plans with; it reads them when its attempt begins."""
    budget = spec.budget
    return _hash((budget.duration, budget.gpu_hour_price, budget.max_cost, spec.deadline))


def _hash(parts: tuple[Any, ...]) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def claims(run: TrainingRun) -> dict[str, PersistentVolumeClaim]:
    """Role → the claim mounted for it."""
    found = {
        f"data-{number}": stream.persistent_volume_claim
        for number, stream in enumerate(run.spec.data.streams)
    }
    found["checkpoint"] = run.spec.checkpoint.persistent_volume_claim
    if run.spec.export is not None:
        found["export"] = run.spec.export.persistent_volume_claim
    return {role: claim for role, claim in found.items() if claim is not None}


def secrets(run: TrainingRun) -> dict[str, SecretRef]:
    """Role → the Secret mounted for it."""
    found = {f"data-{n}": stream.secret_ref for n, stream in enumerate(run.spec.data.streams)}
    found["checkpoint"] = run.spec.checkpoint.secret_ref
    if run.spec.export is not None:
        found["export"] = run.spec.export.secret_ref
    return {role: secret for role, secret in found.items() if secret is not None}


def settings(
    run: TrainingRun, attempt: int, recipe: FixedRecipe, *, nodes: int, held_seconds: float
) -> RunSettings:
    """What the workers of one attempt are told beside the recipe."""
    spec = run.spec
    interval = Interval.parse(spec.checkpoint.interval)
    streams = tuple(
        StreamSettings(
            url=_url(f"data-{number}", stream.url), weight=stream.weight, role=f"data-{number}"
        )
        for number, stream in enumerate(spec.data.streams)
    )
    return RunSettings(
        name=run.name,
        namespace=run.namespace,
        uid=run.uid,
        attempt=attempt,
        nodes=nodes,
        processes_per_node=spec.workers.processes_per_node,
        master_address=f"{names.job_name(run, attempt)}-0.{names.service_name(run)}",
        master_port=contract.rendezvous_port(run.namespace, run.name, attempt),
        recipe_hash=recipe.hash,
        streams=streams,
        checkpoint_url=_url("checkpoint", spec.checkpoint.storage),
        checkpoint_interval_seconds=interval.seconds,
        checkpoint_interval_steps=interval.steps,
        checkpoint_keep_last=spec.checkpoint.keep_last,
        accept_changes=spec.checkpoint.accept_changes,
        resume_from=resume_from.url(run),
        cache_bytes=_cache_bytes(spec.data.cache.size_limit),
        compute=ComputeSettings(**spec.compute.model_dump()),
        health=HealthSettings(
            startup_seconds=seconds(spec.health_policy.startup_deadline),
            progress_seconds=seconds(spec.health_policy.progress_deadline),
            rank_restarts=spec.health_policy.rank_restarts,
            non_finite_steps=spec.health_policy.non_finite_steps,
        ),
        evaluation=_evaluation(spec.evaluation),
        export_url=_url("export", spec.export.storage) if spec.export else None,
        export_dtype=spec.export.dtype if spec.export else "fp32",
        budget=budget(run),
        deadline=spec.deadline,
        held_seconds=held_seconds,
        grace_seconds=seconds(spec.termination_grace_period),
    )


def _evaluation(spec: EvaluationSpec) -> EvaluationSettings:
    interval = Interval.parse(spec.interval)
    return EvaluationSettings(
        prompts=spec.prompts,
        images=spec.images,
        benchmark=spec.benchmark,
        interval_seconds=interval.seconds or None,
        interval_steps=interval.steps,
        validation_samples=spec.validation_samples,
        extractors=ExtractorSettings(**spec.extractors.model_dump()),
    )


def budget(run: TrainingRun) -> BudgetSettings:
    """What the run may use, in the trainer's units."""
    given = run.spec.budget
    return BudgetSettings(
        duration_seconds=seconds(given.duration) if given.duration else None,
        gpu_hour_price=float(given.gpu_hour_price) if given.gpu_hour_price else None,
        max_cost=float(given.max_cost) if given.max_cost else None,
    )


_CACHE_SHARE = 0.8
"""The rest of the scratch volume is for a text encoder, compiled kernels and temporary files; the
kubelet evicts a pod that exceeds its volume's limit."""


def _cache_bytes(size_limit: str) -> int:
    """What the shard cache may take of a scratch volume of this size (a Kubernetes quantity)."""
    return max(1, int(float(quantity(size_limit)) * _CACHE_SHARE))


def _url(role: str, storage: str | None) -> str:
    return storage or str(contract.VOLUMES_DIR / role)


def gpus(spec: TrainingRunSpec) -> int:
    """Of a worker's trainer, by its limits and what the template lays over them; a part of one
    (MIG, a time slice) counts as one. What is claimed from DRA drivers is not known."""
    overlay = spec.workers.template.get("spec") or {}
    laid = (c for c in overlay.get("containers") or [] if c["name"] == TRAINER)
    resources = [spec.workers.resources, *(c.get("resources") or {} for c in laid)]
    limits = {name: n for each in resources for name, n in (each.get("limits") or {}).items()}
    return sum(int(n) for name, n in limits.items() if _GPU.fullmatch(name) and str(n).isdecimal())


def devices_per_node(run: TrainingRun) -> int:
    """GPUs of a worker pod; without any, its ranks: what the ledger counts hours of."""
    processes = run.spec.workers.processes_per_node
    return gpus(run.spec) or (processes if isinstance(processes, int) else 1)


def _pod(run: TrainingRun, attempt: int, recipe: FixedRecipe, told: RunSettings) -> dict[str, Any]:
    """Meets Pod Security's `restricted` level; holds no API token."""
    volumes, mounts = _volumes(run, recipe)
    return {
        "metadata": {
            "labels": names.labels(run, attempt),
            "annotations": queueing.pod_annotations(run),
        },
        "spec": {
            "restartPolicy": "Never",
            "subdomain": names.service_name(run),
            **pods.ANY_POD,
            "terminationGracePeriodSeconds": ceil(seconds(run.spec.termination_grace_period)),
            "containers": [_container(run, told, mounts)],
            "volumes": volumes,
        },
    }


def _container(run: TrainingRun, told: RunSettings, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/healthz", "port": contract.HTTP_PORT}}
    return {
        "name": TRAINER,
        "image": run.spec.workers.image,
        "command": ["python", "-m", "daybreak_trainer.launch"],
        "env": [
            pods.text_env(contract.ENV_RUN, told.to_json()),
            pods.field_env(contract.ENV_NODE_INDEX, pods.COMPLETION_INDEX),
            pods.field_env(contract.ENV_POD_NAME, "metadata.name"),
            pods.field_env(contract.ENV_POD_IP, "status.podIP"),
            *_threads(run),
        ],
        "ports": [{"name": "http", "containerPort": contract.HTTP_PORT}],
        "readinessProbe": {**probe, "periodSeconds": 5},
        "resources": run.spec.workers.resources,
        "securityContext": pods.SECURE_CONTAINER,
        "volumeMounts": mounts,
    }


def _threads(run: TrainingRun) -> list[dict[str, Any]]:
    """How many threads a rank computes with: its part of the CPUs that the pod has for itself.

    Left to itself, PyTorch starts one for each CPU of the node; the ranks of several pods on a node
    then wait for each other's threads. `workers.template` may say something else.
    """
    resources = run.spec.workers.resources
    wanted = {**resources.get("requests", {}), **resources.get("limits", {})}.get("cpu")
    if wanted is None:
        return []
    text = str(wanted)
    try:
        cpus = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return []  # the API server says so when the Job is created
    processes = run.spec.workers.processes_per_node
    share = cpus / (processes if isinstance(processes, int) else 1)
    return [{"name": "OMP_NUM_THREADS", "value": str(max(1, int(share)))}]


def _volumes(
    run: TrainingRun, recipe: FixedRecipe
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    scratch = {"sizeLimit": run.spec.data.cache.size_limit}
    volumes: list[dict[str, Any]] = [
        {"name": "work", "emptyDir": scratch},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "recipe", "configMap": {"name": names.config_name(run, recipe.hash)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": str(contract.WORK_DIR)},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "recipe", "mountPath": str(contract.RECIPE_PATH.parent), "readOnly": True},
    ]
    mounted = [
        pods.mounted_claim(role, claim, read_only=role.startswith("data-"))
        for role, claim in claims(run).items()
    ]
    mounted += [pods.mounted_secret(role, secret) for role, secret in secrets(run).items()]
    volumes += [volume for volume, _ in mounted]
    mounts += [mount for _, mount in mounted]
    return volumes, mounts + resume_from.mounts(run)
