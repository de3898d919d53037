"""The whole path on any cluster: the chart's operator, a prepared dataset, a run that completes.

With `DAYBREAK_E2E_KUBECONFIG` set, the chart is expected to be installed there as release
`daybreak` in `daybreak-system`, and `DAYBREAK_E2E_TRAINER_IMAGE` names the trainer's image: so it
runs on kind. Otherwise a development cluster is started and the chart is installed on it with helm,
so that the operator has the permissions that the chart gives, and no others.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[2]
RELEASE, SYSTEM = "daybreak", "daybreak-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
CLAIMS = ("datasets", "checkpoints", "models")
RUN_SECONDS = 900
Json = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    """A cluster with the chart installed, as its administrator sees it."""

    environment: dict[str, str]
    trainer_image: str

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        done = subprocess.run(
            ["kubectl", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=seconds,
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *manifests: Json, namespace: str = "default") -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))

    def get(self, kind: str, name: str, namespace: str) -> Json:
        answer: Json = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return answer

    def phases(self, name: str, namespace: str) -> Iterator[str]:
        """The run's phase, again at each of its changes, until it ends or the time is over."""
        watch = subprocess.Popen(
            [
                *("kubectl", "-n", namespace, "get", "trainingrun", name, "--watch"),
                *("-o", 'jsonpath={.status.phase}{"\\n"}', f"--request-timeout={RUN_SECONDS}s"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert watch.stdout is not None
        try:
            for line in watch.stdout:
                if line.strip():
                    yield line.strip()
        finally:
            watch.kill()
            watch.communicate()

    def run_job(self, name: str, command: list[str], namespace: str) -> str:
        """Run a command in the trainer's image with the claims under /data; what it printed."""
        self.apply(_job(name, self.trainer_image, command), namespace=namespace)
        kubectl = ("-n", namespace)
        self.kubectl(
            *kubectl, "wait", "--for=condition=Complete", f"job/{name}", "--timeout=300s",
            seconds=320,
        )  # fmt: skip
        return self.kubectl(*kubectl, "logs", f"job/{name}")


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """The cluster under test."""
    if kubeconfig := os.environ.get("DAYBREAK_E2E_KUBECONFIG"):
        environment = {**os.environ, "KUBECONFIG": kubeconfig}
        yield Kube(environment, os.environ["DAYBREAK_E2E_TRAINER_IMAGE"])
        return
    with Cluster(tmp_path_factory.mktemp("smoke") / "state") as cluster:
        kube = Kube(cluster.environment(), "not-looked-at")
        kube.apply(_namespace(SYSTEM))
        helm(
            cluster,
            "install",
            RELEASE,
            str(ROOT / "charts" / "daybreak"),
            "--wait",
            "--timeout=60s",
        )
        yield kube
        helm(cluster, "uninstall", RELEASE)
        assert "trainingruns.daybreak.dev" in kube.kubectl("get", "crd", "-o", "name")
        assert cluster.failure() is None


def helm(cluster: Cluster, *arguments: str) -> None:
    """Run helm against a development cluster, with its own files inside the state directory."""
    state = cluster.info.state_dir / "helm"
    environment = {
        **cluster.environment(),
        **{f"HELM_{name}_HOME": str(state / name.lower()) for name in ("CACHE", "CONFIG", "DATA")},
    }
    command = [sys.executable, str(ROOT / "hack" / "helm.py"), *arguments, "--namespace", SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def namespace(kube: Kube) -> Iterator[str]:
    """A namespace that enforces the `restricted` level, with the claims of the example."""
    name = f"smoke-{secrets.token_hex(3)}"
    kube.apply(_namespace(name))
    kube.kubectl("-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    kube.apply(*(_claim(claim) for claim in CLAIMS), namespace=name)
    yield name
    kube.kubectl("delete", "namespace", name, "--wait=false")


def test_the_operator_may_do_what_it_needs_and_no_more(kube: Kube) -> None:
    """The chart lets the operator create Jobs, and neither write pods nor list Secrets."""
    account = f"--as=system:serviceaccount:{SYSTEM}:{RELEASE}"
    rules = kube.kubectl("auth", "can-i", "--list", account, "-n", "default", "--no-headers")
    rights = {line.split()[0]: line[line.rindex("[") :] for line in rules.splitlines()}
    assert "create" in rights["jobs.batch"]
    assert rights["secrets"] == "[get]"
    assert "create" not in rights["pods"]
    assert "update" not in rights["trainingruns.daybreak.dev"]
    assert "update" in rights["trainingruns.daybreak.dev/status"]


def test_the_smoke_run_completes(kube: Kube, namespace: str) -> None:
    """The example, applied as it is but for its image, trains on two workers, is judged and
    exported; deleting it removes its objects and leaves checkpoint and model."""
    prepare = ["daybreak", "prepare", "digits", "/data/datasets/digits"]
    kube.run_job("prepare", prepare, namespace)
    run = yaml.safe_load((ROOT / "manifests" / "examples" / "smoke.yaml").read_text())
    run["spec"]["workers"]["image"] = kube.trainer_image
    kube.apply(run, namespace=namespace)

    seen: list[str] = []
    for phase in kube.phases("smoke", namespace):
        seen.append(phase)
        if phase in ("Complete", "Failed"):
            break
    assert seen[-1:] == ["Complete"], _story(kube, namespace)
    status = kube.get("trainingrun", "smoke", namespace)["status"]
    assert status["attempt"] == 1, _story(kube, namespace)
    assert status["progress"]["percent"] == 100
    assert status["checkpoint"]["step"] == status["progress"]["totalSteps"]
    assert status["evaluation"]["benchmark"] == "digits"
    logs = kube.kubectl("-n", SYSTEM, "logs", f"deployment/{RELEASE}")
    assert "forbidden" not in logs.lower()

    kube.kubectl("-n", namespace, "delete", "trainingrun", "smoke", "--timeout=120s")
    kube.kubectl(
        *("-n", namespace, "wait", "--for=delete", "--timeout=120s"),
        *("pods,jobs,services,configmaps", "-l", "daybreak.dev/run=smoke"),
        seconds=150,
    )
    kept = kube.run_job("list", ["find", "/data", "-type", "f"], namespace).split()
    assert any(path.endswith("/COMMIT.json") for path in kept)
    assert any(path.startswith("/data/models/") and "model_index" in path for path in kept)


def _story(kube: Kube, namespace: str) -> str:
    """What a person would ask for when the run did not end well."""
    described = kube.kubectl("-n", namespace, "describe", "trainingrun", "smoke")
    pods = kube.kubectl("-n", namespace, "get", "pods", "-o", "wide")
    logs = kube.kubectl("-n", SYSTEM, "logs", f"deployment/{RELEASE}", "--tail=50")
    return "\n".join((described, pods, logs))


def _namespace(name: str) -> Json:
    metadata = {"name": name, "labels": RESTRICTED}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _claim(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            # One node is all that kind's default storage serves; both workers run there.
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def _job(name: str, image: str, command: list[str]) -> Json:
    """Meets the `restricted` level; writable are /data/<claim> and /tmp."""
    container = {
        "name": "main",
        "image": image,
        "command": command,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            *({"name": claim, "mountPath": f"/data/{claim}"} for claim in CLAIMS),
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            *({"name": c, "persistentVolumeClaim": {"claimName": c}} for c in CLAIMS),
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }
