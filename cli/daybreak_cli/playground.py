"""A namespace on a development cluster with the operator and the volumes that a run needs.

The demo, the tests of whole runs and `benchmarks/recovery.py` share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.contract import HTTP_PORT, Progress

ROOT = Path(__file__).parents[2]
VOLUMES = ("datasets", "checkpoints", "models")
_OPERATOR_NAMESPACE = "daybreak-system"
_PATH_ANNOTATION = "devcluster.daybreak.dev/path"
Object = dict[str, Any]


def install_operator(cluster: Cluster) -> None:
    """One operator, under its own ServiceAccount with the rights of `manifests/base`."""
    cluster.kubectl("apply", "-k", str(ROOT / "manifests/overlays/devcluster"))
    cluster.kubectl(
        *("wait", "-n", _OPERATOR_NAMESPACE, "--for=condition=Available"),
        *("deployment/daybreak-operator", "--timeout=150s"),
    )


def create_namespace(cluster: Cluster, name: str) -> None:
    """A namespace that enforces Pod Security's `restricted` level."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }
    cluster.kubectl("create", "-f", "-", input=json.dumps(body))


def create_claims(cluster: Cluster, namespace: str, folder: Path) -> None:
    """The claims `VOLUMES`, each a folder of that name below `folder`; pods are another user."""
    for name in VOLUMES:
        create_claim(cluster, namespace, name, folder / name)


def create_claim(cluster: Cluster, namespace: str, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": {_PATH_ANNOTATION: str(folder)}},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(body))


@dataclass(frozen=True)
class Playground:
    """A namespace with its claims; `folder` holds what they are bound to."""

    cluster: Cluster
    namespace: str
    folder: Path

    def apply(self, name: str, labels: dict[str, str] | None = None, **changes: Any) -> None:
        """Creates the run that `manifest` describes."""
        body = json.dumps(self.manifest(name, labels, **changes))
        self.cluster.kubectl("create", "-n", self.namespace, "-f", "-", input=body)

    def manifest(self, name: str, labels: dict[str, str] | None = None, **changes: Any) -> Object:
        """A small run on two nodes; `changes` replace fields of its spec."""
        spec: Object = {
            "workers": {
                "image": "ghcr.io/daybreak/trainer:0.1.0",
                "nodes": 2,
                "processesPerNode": 1,
            },
            "data": {
                "streams": [{"persistentVolumeClaim": {"claimName": "datasets"}}],
            },
            "recipe": {
                "preset": "smoke",
                "stages": [{"resolution": 16, "steps": 120, "batchSize": 6}],
            },
            "checkpoint": {
                "persistentVolumeClaim": {"claimName": "checkpoints", "subPath": name},
                "interval": "20steps",
            },
            "terminationGracePeriod": "30s",
        }
        return {
            "apiVersion": "daybreak.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": spec | changes,
        }

    def get(self, name: str) -> Object:
        out = self.cluster.kubectl("get", "trun", name, "-n", self.namespace, "-o", "json").stdout
        run: Object = json.loads(out)
        return run

    def wait(self, name: str, until: Callable[[Object], object], seconds: float = 300) -> Object:
        """The run's status as soon as `until` holds for it; TimeoutError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            status: Object = self.get(name).get("status", {})
            if until(status):
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s: {json.dumps(status)}")
            time.sleep(0.3)

    def end(self, name: str) -> Object:
        return self.wait(name, lambda status: status.get("phase") in ("Complete", "Failed"))

    def worker_at_step(self, name: str, step: int) -> str:
        """The name of worker 0's pod, of the attempt that is at work, as soon as it says that it is
        there."""
        chosen = f"-ldaybreak.dev/run={name},batch.kubernetes.io/job-completion-index=0"
        path = "-ojsonpath={range .items[*]}{.metadata.name} {.status.podIP}{end}"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            get = ("get", "pods", "-n", self.namespace, chosen, path)
            pod, _, address = self.cluster.kubectl(*get).stdout.partition(" ")
            with suppress(OSError):
                while progress_of(address).step < step:
                    time.sleep(0.02)
                return pod
            time.sleep(0.3)
        raise TimeoutError(f"{name}: worker 0 was not at step {step} within 300 s")

    def pods(self, name: str) -> list[str]:
        out = self.cluster.kubectl(
            *("get", "pods", "-n", self.namespace, "-l", f"daybreak.dev/run={name}"),
            *("-o", "jsonpath={.items[*].metadata.name}"),
        ).stdout
        return sorted(out.split())

    def events(self, name: str) -> str:
        """Reasons and messages of the run's Events."""
        selector = f"involvedObject.kind=TrainingRun,involvedObject.name={name}"
        return self.cluster.kubectl(
            *("get", "events", "-n", self.namespace, "--field-selector", selector),
            *("-o", 'jsonpath={range .items[*]}{.reason}: {.message}{"\\n"}{end}'),
        ).stdout


def progress_of(address: str) -> Progress:
    """What the worker at an address says; raises OSError where nobody answers."""
    with urlopen(f"http://{address}:{HTTP_PORT}/progress", timeout=2) as answer:
        return Progress.model_validate_json(answer.read())
