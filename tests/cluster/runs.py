"""What tests of whole runs share: the operator on the cluster, volumes, and waiting for a run."""

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
Run = dict[str, Any]


def install_operator(cluster: Cluster) -> None:
    """The operator as `manifests/base` installs it, under its own ServiceAccount."""
    cluster.kubectl("apply", "-k", str(ROOT / "manifests/base"))
    cluster.kubectl(
        *("wait", "-n", "daybreak-system", "--for=condition=Available"),
        *("deployment/daybreak-operator", "--timeout=90s"),
        timeout=100,
    )


def install_rights(cluster: Cluster) -> None:
    """All of `manifests/base` but the operator: its ServiceAccount and rights, and the CRD."""
    base = ROOT / "manifests/base"
    for part in ("namespace", "crd", "rbac"):
        cluster.kubectl("apply", "-n", "daybreak-system", "-f", str(base / f"{part}.yaml"))
    cluster.kubectl(
        *("wait", "--for=condition=Established", "crd/trainingruns.daybreak.dev", "--timeout=60s")
    )


def claim(cluster: Cluster, namespace: str, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    body = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "annotations": {"devcluster.daybreak.dev/path": str(folder)},
        },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(body))


def _step(address: str) -> int:
    """What the worker at an address says of its progress; raises OSError where nobody answers."""
    with urlopen(f"http://{address}:{HTTP_PORT}/progress", timeout=2) as answer:
        return Progress.model_validate_json(answer.read()).step


@dataclass(frozen=True)
class Bench:
    """A namespace with the volumes that a run needs."""

    cluster: Cluster
    namespace: str
    folder: Path

    def apply(self, name: str, **changes: Any) -> None:
        """A small run on two nodes; `changes` replace fields of its spec."""
        spec: Run = {
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
        body = {
            "apiVersion": "daybreak.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name},
            "spec": spec | changes,
        }
        self.cluster.kubectl("create", "-n", self.namespace, "-f", "-", input=json.dumps(body))

    def get(self, name: str) -> Run:
        out = self.cluster.kubectl("get", "trun", name, "-n", self.namespace, "-o", "json").stdout
        run: Run = json.loads(out)
        return run

    def wait(self, name: str, until: Callable[[Run], object], seconds: float = 150) -> Run:
        """The run's status as soon as `until` holds for it."""
        deadline = time.monotonic() + seconds
        while True:
            status: Run = self.get(name).get("status", {})
            if until(status):
                return status
            assert time.monotonic() < deadline, f"not within {seconds} s: {json.dumps(status)}"
            time.sleep(0.3)

    def end(self, name: str) -> Run:
        return self.wait(name, lambda status: status.get("phase") in ("Complete", "Failed"))

    def at_step(self, name: str, step: int) -> Run:
        return self.wait(name, lambda s: s.get("progress", {}).get("step", 0) >= step)

    def worker_at_step(self, name: str, step: int) -> str:
        """The name of worker 0's pod of the first attempt, as soon as it says that it is there."""
        chosen = f"-ldaybreak.dev/run={name},batch.kubernetes.io/job-completion-index=0"
        path = "-ojsonpath={range .items[*]}{.metadata.name} {.status.podIP}{end}"
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            get = ("get", "pods", "-n", self.namespace, chosen, path)
            pod, _, address = self.cluster.kubectl(*get).stdout.partition(" ")
            with suppress(OSError):
                while _step(address) < step:
                    time.sleep(0.02)
                return pod
            time.sleep(0.3)
        raise AssertionError(f"{name}: worker 0 was not at step {step} within 150 s")

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

    def journal(self, name: str) -> list[Run]:
        """The journal of the run's last commit."""
        commits = sorted((self.folder / "checkpoints" / name).glob("run-*/attempt-*/step-*"))
        lines = (commits[-1] / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def origin(self, name: str, attempt: int) -> Run | None:
        """The commit that an attempt resumed from; None where it began afresh."""
        pattern = f"run-*/attempt-{attempt:04d}/ATTEMPT.json"
        (file,) = (self.folder / "checkpoints" / name).glob(pattern)
        parent: Run | None = json.loads(file.read_text()).get("parent")
        return parent
