"""Tries the images: the operator's on a real API server, the trainer's on that operator's Job.

`.venv/bin/python hack/try_images.py` after `make images`; IMAGE_PREFIX and IMAGE_TAG as there. A
development cluster without nodes gives the API server, and the chart the permissions. docker or
podman runs both containers as their pods say: unprivileged, without capabilities, the root file
system read-only. The operator must turn healthy and make a Job of the smoke run; the trainer runs
that Job's pod template to its end. Exits non-zero, and says what failed, otherwise.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from helm import find_helm

from daybreak_devcluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
SYSTEM, NAMESPACE = "daybreak-system", "trial"
CLAIMS = ("datasets", "checkpoints", "models")
OPERATOR_IP, WORKER_IP = "127.0.0.21", "127.0.0.22"
ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
LOCKED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=host")
HEALTHY_SECONDS, JOB_SECONDS, RUN_SECONDS = 60.0, 60.0, 900.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """docker or podman."""

    program: str

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True)
        if check and done.returncode != 0:
            raise SystemExit(f"{self.program} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self, name: str, image: str, *flags: str, command: list[str]) -> None:
        """In the background; `command` replaces the image's own, as in a pod."""
        locked = LOCKED
        if self.program == "podman":  # or it would lay writable folders over the root
            locked = (*LOCKED, "--read-only-tmpfs=false")
        entrypoint = ("--entrypoint", command[0])
        self("run", "--detach", "--name", name, *locked, *flags, *entrypoint, image, *command[1:])

    def exit_code(self, name: str) -> int | None:
        """None while it runs."""
        state = json.loads(self("inspect", name))[0]["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def logs(self, name: str) -> str:
        done = subprocess.run([self.program, "logs", name], capture_output=True, text=True)
        return "\n".join((done.stdout + done.stderr).splitlines()[-30:])


def find_engine() -> Engine:
    for program in ("docker", "podman"):
        if shutil.which(program):
            answers = subprocess.run([program, "info"], capture_output=True).returncode == 0
            if answers:
                return Engine(program)
    raise SystemExit("no docker with a running daemon, and no podman; install one of them")


def wait(what: str, until: Callable[[], bool], seconds: float) -> float:
    """The seconds it took. Ends the trial where it takes longer."""
    started = time.monotonic()
    while not until():
        if time.monotonic() - started > seconds:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - started


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    prefix = os.environ.get("IMAGE_PREFIX", "ghcr.io/daybreak")
    tag = os.environ.get("IMAGE_TAG", version)
    images = {name: f"{prefix}/{name}:{tag}" for name in ("operator", "trainer")}
    engine = find_engine()
    for name, image in images.items():
        (about,) = json.loads(engine("image", "inspect", image))
        user = about["Config"].get("User", "")
        print(f"{name}: {image}, {about['Size'] / 1e6:.0f} MB, user {user}", flush=True)
        if not re.fullmatch(r"[1-9]\d*(:\d+)?", user):
            raise SystemExit(f"{name}: runAsNonRoot needs a numeric user other than 0 in the image")
    with tempfile.TemporaryDirectory(prefix="daybreak-images-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # the containers are other users
        containers = (f"{work.name}-operator", f"{work.name}-prepare", f"{work.name}-worker")
        try:
            with Cluster(work / "cluster", nodes=()) as cluster:
                install_chart(cluster)
                try_operator(engine, cluster, images["operator"], containers[0], work)
                try_trainer(engine, cluster, images["trainer"], containers[1:], work)
                stop_operator(engine, containers[0])
        finally:
            engine("rm", "--force", *containers, check=False)


def install_chart(cluster: Cluster) -> None:
    environment = {**cluster.environment(), "HELM_CACHE_HOME": str(cluster.info.state_dir / "helm")}
    chart = ("install", "daybreak", str(ROOT / "charts" / "daybreak"))
    subprocess.run(
        [str(find_helm()), *chart, "--namespace", SYSTEM, "--create-namespace"],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def try_operator(engine: Engine, cluster: Cluster, image: str, name: str, work: Path) -> None:
    """As the kubelet starts it: the ServiceAccount's token, the pod's IP, nothing else."""
    account = work / "account"
    account.mkdir(mode=0o755)
    token = cluster.kubectl("create", "token", "daybreak", "-n", SYSTEM).stdout.strip()
    (account / "token").write_text(token)
    ca = cluster.kubectl(
        *("get", "configmap", "kube-root-ca.crt", "-n", SYSTEM, "-o", r"jsonpath={.data.ca\.crt}")
    )
    (account / "ca.crt").write_text(ca.stdout)
    server = urlsplit(cluster.info.server)
    engine.start(
        name,
        image,
        *("--env", f"KUBERNETES_SERVICE_HOST={server.hostname}"),
        *("--env", f"KUBERNETES_SERVICE_PORT={server.port}"),
        *("--env", f"DAYBREAK_POD_IP={OPERATOR_IP}"),
        *("--volume", f"{account}:{ACCOUNT_DIR}:ro"),
        command=["python", "-m", "daybreak_operator"],
    )

    def healthy() -> bool:
        if engine.exit_code(name) is not None:
            raise SystemExit(f"the operator ended:\n{engine.logs(name)}")
        try:
            with urllib.request.urlopen(f"http://{OPERATOR_IP}:8080/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    seconds = wait("the operator's /healthz", healthy, HEALTHY_SECONDS)
    print(f"operator: /healthz answers 200 after {seconds:.1f} s", flush=True)


def try_trainer(
    engine: Engine, cluster: Cluster, image: str, names: tuple[str, str], work: Path
) -> None:
    """Prepare a dataset, and run what the operator wants of the smoke run's only worker."""
    for folder in CLAIMS:
        (work / folder).mkdir()
        (work / folder).chmod(0o777)
    prepare, worker = names
    engine.start(
        prepare,
        image,
        *("--tmpfs", "/tmp:mode=1777", "--env", "HOME=/tmp"),
        *("--volume", f"{work / 'datasets'}:/data"),
        command=["daybreak", "prepare", "digits", "/data/digits"],
    )
    seconds = finish(engine, prepare)
    print(f"trainer: prepared the dataset digits in {seconds:.0f} s", flush=True)

    cluster.kubectl("create", "namespace", NAMESPACE)
    run = yaml.safe_load((ROOT / "manifests" / "examples" / "smoke.yaml").read_text())
    run["spec"]["workers"]["nodes"] = 1
    for body in (*map(_claim, CLAIMS), run):
        cluster.kubectl("create", "-n", NAMESPACE, "-f", "-", input=json.dumps(body))
    find = ("get", "job", "smoke-1", "-n", NAMESPACE, "-o", "json")
    wait(
        "the operator's Job",
        lambda: cluster.kubectl(*find, check=False).returncode == 0,
        JOB_SECONDS,
    )
    print("operator: made the Job of the smoke run", flush=True)
    pod = json.loads(cluster.kubectl(*find).stdout)["spec"]["template"]
    start_worker(engine, cluster, image, worker, pod, work)
    seconds = finish(engine, worker)
    if not list((work / "models").rglob("model_index.json")):
        raise SystemExit("the worker ended well and exported no model")
    print(f"trainer: trained, judged and exported the smoke run in {seconds:.0f} s", flush=True)


def start_worker(
    engine: Engine, cluster: Cluster, image: str, name: str, template: Json, work: Path
) -> None:
    """What a kubelet makes of the pod, as far as the smoke run's needs it."""
    pod = template["spec"]
    (container,) = pod["containers"]
    fields = {"metadata.name": "smoke-1-0", "status.podIP": WORKER_IP}
    flags = [
        *(
            "--user",
            f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}",
        ),
        *("--add-host", f"smoke-1-0.{pod['subdomain']}:{WORKER_IP}"),
        *("--env", "GLOO_SOCKET_IFNAME=lo"),
    ]
    for variable in container["env"]:
        value = variable.get("value")
        if value is None:
            value = fields.get(variable["valueFrom"]["fieldRef"]["fieldPath"], "0")  # the index
        flags += ["--env", f"{variable['name']}={value}"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, path = volumes[mount["name"]], mount["mountPath"]
        if "emptyDir" in volume:
            flags += ["--tmpfs", f"{path}:mode=1777"]
            continue
        if "configMap" in volume:
            source = work / "config"
            source.mkdir(mode=0o755)
            of = ("get", "configmap", volume["configMap"]["name"], "-n", NAMESPACE, "-o", "json")
            for file, text in json.loads(cluster.kubectl(*of).stdout)["data"].items():
                (source / file).write_text(text)
        else:
            claim = volume["persistentVolumeClaim"]["claimName"]
            source = work / claim / mount.get("subPath", "")
            source.mkdir(exist_ok=True)
            source.chmod(0o777)
        flags += ["--volume", f"{source}:{path}{':ro' if mount.get('readOnly') else ''}"]
    engine.start(name, image, *flags, command=container["command"])


def finish(engine: Engine, name: str) -> float:
    """The seconds until the container ended; it must end with 0."""
    seconds = wait(name, lambda: engine.exit_code(name) is not None, RUN_SECONDS)
    if code := engine.exit_code(name):
        raise SystemExit(f"{name} ended with {code}:\n{engine.logs(name)}")
    return seconds


def stop_operator(engine: Engine, name: str) -> None:
    started = time.monotonic()
    engine("stop", "--time", "30", name)
    seconds = time.monotonic() - started
    if code := engine.exit_code(name):
        raise SystemExit(f"the operator ended with {code} on SIGTERM:\n{engine.logs(name)}")
    print(f"operator: ended with 0 on SIGTERM after {seconds:.1f} s", flush=True)


def _claim(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


if __name__ == "__main__":
    sys.exit(main())
