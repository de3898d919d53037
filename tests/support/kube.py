"""Any cluster, as its administrator sees it, and the chart on it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak_devcluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "daybreak"
RELEASE, SYSTEM = "daybreak", "daybreak-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
CLAIMS = ("datasets", "checkpoints", "models")
JOB_SECONDS = 600
Json = dict[str, Any]


@dataclass(frozen=True)
class Kube:
    """`images` is the repository and the tag of both images; on a development cluster, whose pods
    are processes of this checkout, they are names only."""

    environment: dict[str, str]
    image_prefix: str
    image_tag: str
    devcluster: Cluster | None = None

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

    def helm(self, *arguments: str) -> str:
        """Run helm in the operator's namespace."""
        command = [sys.executable, str(ROOT / "hack" / "helm.py"), *arguments]
        done = subprocess.run(
            [*command, "--namespace", SYSTEM],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=300,
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def chart(self, *settings: str) -> str:
        """Install the chart, or upgrade it to these values, and wait until its operator is ready;
        what helm printed."""
        values = (
            f"image.repository={self.image_prefix}/operator",
            f"image.tag={self.image_tag}",
            *settings,
        )
        return self.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--reset-values"),
            *("--wait", "--timeout=180s"),
            *(part for value in values for part in ("--set", value)),
        )

    def apply(self, *manifests: Json, namespace: str = "default") -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))

    def get(self, kind: str, name: str, namespace: str) -> Json:
        answer: Json = json.loads(self.kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        return answer

    def rights(self, account: str, namespace: str) -> set[tuple[str, str]]:
        """Every resource and verb that an account may use in a namespace."""
        listed = self.kubectl(
            *("auth", "can-i", "--list", f"--as={account}", "-n", namespace, "--no-headers"),
        )
        # resource, non-resource URLs, resource names and verbs, the last two in brackets
        return {
            (line.split()[0], verb)
            for line in listed.splitlines()
            if not line.startswith(" ")
            for verb in line[line.rindex("[") + 1 : line.rindex("]")].split()
        }

    def operator_log(self) -> str:
        """Of all replicas."""
        chosen = f"app.kubernetes.io/instance={RELEASE}"
        return self.kubectl("-n", SYSTEM, "logs", "-l", chosen, "--prefix", "--tail=-1")

    def phases(self, name: str, namespace: str, seconds: float) -> Iterator[str]:
        """The run's phase, again at each of its changes, until the time is over."""
        watch = subprocess.Popen(
            [
                *("kubectl", "-n", namespace, "get", "trainingrun", name, "--watch"),
                *("-o", 'jsonpath={.status.phase}{"\\n"}', f"--request-timeout={seconds}s"),
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
        image = f"{self.image_prefix}/trainer:{self.image_tag}"
        self.apply(_job(name, image, command), namespace=namespace)
        # A Job has no condition before it ends, one way or the other.
        self.kubectl(
            *(
                "-n",
                namespace,
                "wait",
                "--for=jsonpath={.status.conditions[0].type}",
                f"job/{name}",
            ),
            f"--timeout={JOB_SECONDS}s",
            seconds=JOB_SECONDS + 20,
        )
        said = self.kubectl("-n", namespace, "logs", f"job/{name}")
        assert "failed" not in self.get("job", name, namespace)["status"], said
        return said

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A new namespace that enforces the `restricted` level, until the block ends. One that is
        there already is somebody's, and not touched."""
        metadata = {"name": name, "labels": RESTRICTED}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))
        self.kubectl("-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=150s")
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")


def claim(name: str) -> Json:
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
    """Meets the `restricted` level; writable are /data/<claim> and /scratch. Not /tmp: on
    the development cluster a mount there would hide a checkout that lies below it."""
    container = {
        "name": "main",
        "image": image,
        "command": command,
        "env": [{"name": name, "value": "/scratch"} for name in ("HOME", "TMPDIR")],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/scratch"},
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
            {"name": "scratch", "emptyDir": {}},
            *({"name": c, "persistentVolumeClaim": {"claimName": c}} for c in CLAIMS),
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }
