"""Whole lives of runs with the scripted worker, under an operator that is killed on purpose."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import yaml
from crashing_operator import KILLED, Plan
from kubernetes import client, watch
from runs import Bench, install_rights

from daybreak_cli.playground import create_claims, create_namespace
from daybreak_devcluster.cluster import Cluster
from daybreak_trainer.contract import rfc3339

GROUP = ("daybreak.dev", "v1alpha1")
STEPS = 40
FAILS_AT, HOLDS_AT = 12, 25
LATER = "Later"
"""A cleanPodPolicy of a version to come, which this operator cannot read (see `later_schema`)."""
_HERE = Path(__file__).parent
_LONGEST_LIFE_SECONDS = 600
Json = dict[str, Any]
JobChanges = SimpleQueue[dict[str, Any]]


def template(script: dict[int | str, Json]) -> Json:
    """A pod template that has the worker follow a script, by attempt."""
    container = {
        "name": "trainer",
        "command": ["python", str(_HERE / "scripted_worker.py")],
        "env": [{"name": "SCRIPT", "value": json.dumps(script)}],
    }
    return {"spec": {"containers": [container]}}


def spec(nodes: int, script: dict[int | str, Json], steps: int = STEPS) -> Json:
    """The changes to `Bench.apply`'s run that make it a scripted one."""
    image = "ghcr.io/daybreak/trainer:0.1.0"
    resources = {"requests": {"memory": 1 << 20}}  # a number: the API takes it as well as a string
    return {
        "workers": {
            "image": image,
            "nodes": nodes,
            "resources": resources,
            "template": template(script),
        },
        "recipe": {
            "preset": "smoke",
            "stages": [{"resolution": 16, "steps": steps, "batchSize": 6}],
        },
    }


def operator_kubeconfig(cluster: Cluster, folder: Path, server: str | None = None) -> Path:
    """A kubeconfig with the rights of the operator's own ServiceAccount and no others; `server`
    is a proxy's URL."""
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    token = cluster.kubectl("create", "token", "daybreak-operator", "-n", "daybreak-system").stdout
    document["users"][0]["user"] = {"token": token.strip()}
    if server is not None:
        document["clusters"][0]["cluster"] = {"server": server}
    path = folder / "operator.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))
    return path


@contextmanager
def own_operators(cluster: Cluster) -> Iterator[None]:
    """The rights of the installed operator are there for ours, and it makes room for them if it is
    there itself."""
    install_rights(cluster)
    system = ("-n", "daybreak-system")
    installed = cluster.kubectl("get", "deployment", "-o", "name", *system).stdout.split()
    for deployment in installed:
        cluster.kubectl("scale", "--replicas=0", deployment, *system)
        cluster.kubectl("wait", "--for=delete", "pods", "--all", *system, "--timeout=150s")
    try:
        yield
    finally:
        for deployment in installed:
            cluster.kubectl("scale", "--replicas=1", deployment, *system)


@contextmanager
def later_schema(cluster: Cluster) -> Iterator[None]:
    """The API server has the schema of a version to come, which knows the policy `LATER`."""
    schema = "/spec/versions/0/schema/openAPIV3Schema"
    policies = f"{schema}/properties/spec/properties/cleanPodPolicy/enum"
    probe = Bench(cluster, "default", Path()).manifest("probe", cleanPodPolicy=LATER)

    def patch(**change: str) -> None:
        changes = json.dumps([change])
        cluster.kubectl("patch", "crd/trainingruns.daybreak.dev", "--type=json", "-p", changes)

    patch(op="add", path=f"{policies}/3", value=LATER)
    try:
        deadline = time.monotonic() + 180
        create = ("create", "--dry-run=server", "-f", "-")
        while cluster.kubectl(*create, input=json.dumps(probe), check=False).returncode != 0:
            assert time.monotonic() < deadline, "the API server does not take up the new schema"
        yield
    finally:
        patch(op="remove", path=f"{policies}/3")


@dataclass(frozen=True)
class Life:
    """What is left of a run when it is over, and how many calls it took."""

    status: Json
    journal: list[tuple[int, int, int, str]]
    jobs: dict[str, list[str]]
    """Name → the UID of each Job that ever had it, in order of creation."""
    together: int
    """Most Jobs there were at a time."""
    events: Counter[tuple[str, str]]
    calls: list[str]
    log: str = field(repr=False)

    @property
    def killed(self) -> list[str]:
        return [call for call in self.calls if KILLED in call]


class Stage:
    """A namespace with an operator of its own, where lives are played one after the other."""

    def __init__(self, bench: Bench, kubeconfig: Path, api: client.ApiClient) -> None:
        self.bench = bench
        self.api = api
        self._runs, self._batch = client.CustomObjectsApi(api), client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)
        self._folder = bench.folder / "operator"
        self._folder.mkdir()
        self._operator = subprocess.Popen(
            [sys.executable, _HERE / "crashing_operator.py", bench.namespace, self._folder],
            stdin=subprocess.PIPE,
            text=True,
            env=bench.cluster.environment() | {"KUBECONFIG": str(kubeconfig)},
        )

    def close(self) -> None:
        assert self._operator.stdin is not None
        self._operator.stdin.close()
        self._operator.wait()

    def operate(self, plan: Plan) -> None:
        """Replaces the operator by one that follows the plan."""
        assert self._operator.stdin is not None
        self._operator.stdin.write(json.dumps(asdict(plan)) + "\n")
        self._operator.stdin.flush()

    def play(self, name: str, plan: Plan) -> Life:
        """A run that cannot be read until it is corrected. Its first attempt fails, its second is
        scaled from one node to two, and its third completes but for a worker that has to be ended;
        then the run's time to live is over. Every kind of object that the operator ever writes or
        deletes is written and deleted. Needs `later_schema`."""
        changes = self.follow_jobs()
        self.operate(plan)
        script: dict[int | str, Json] = {
            1: {"fail_at": FAILS_AT},
            2: {"hold_at": HOLDS_AT},
            3: {"stays": True},
        }
        self.bench.apply(
            name,
            **spec(1, script),
            cleanPodPolicy=LATER,
            failurePolicy={"backoff": {"initial": "2s"}},
            terminationGracePeriod="3s",
            ttlSecondsAfterFinished=0,
        )
        for run in self.states(name):
            status = run.get("status", {})
            if status.get("phase") in ("Complete", "Failed"):
                break
            if run["spec"]["cleanPodPolicy"] == LATER and status.get("conditions"):
                self.patch(name, cleanPodPolicy="Running")
            second = status.get("attempt") == 2 and status["phase"] == "Running"
            if second and run["spec"]["workers"]["nodes"] == 1:
                self.scale(name, 2)
        self.wait_until_gone("trun", name)
        return self.life(name, status, changes)

    def states(self, name: str, seconds: int = 300) -> Iterator[Json]:
        """The run, each time it changed, and at first as it is."""
        deadline = time.monotonic() + seconds
        run = self.get(name)
        while time.monotonic() < deadline:
            yield run
            changes = watch.Watch().stream(
                self._runs.list_namespaced_custom_object,
                *(*GROUP, self.bench.namespace, "trainingruns"),
                field_selector=f"metadata.name={name}",
                resource_version=run["metadata"]["resourceVersion"],
                timeout_seconds=max(1, int(deadline - time.monotonic())),
            )
            try:
                for change in changes:
                    run = change["object"]
                    yield run
            except client.ApiException as error:
                if error.status != HTTPStatus.GONE:
                    raise
                run = self.get(name)  # an API server that was restarted has no earlier changes
        kinds = ("nodes,persistentvolumeclaims,jobs,pods,events", "-n", self.bench.namespace)
        around = self.bench.cluster.kubectl("get", *kinds).stdout
        told = f"{run.get('status')}\n{around}\n{self.log(40)}"
        raise AssertionError(f"{name}: not within {seconds} s: {told}")

    def apply(self, name: str, **changes: Any) -> None:
        """A run, as `Bench.apply` makes it, without a kubectl for each."""
        self._runs.create_namespaced_custom_object(
            *(*GROUP, self.bench.namespace, "trainingruns"), self.bench.manifest(name, **changes)
        )

    def patch(self, name: str, **changes: Any) -> None:
        """Changes fields of the run's spec."""
        self._runs.patch_namespaced_custom_object(
            *(*GROUP, self.bench.namespace, "trainingruns", name), {"spec": changes}
        )

    def until(self, name: str, holds: Callable[[Json], object], seconds: int = 300) -> Json:
        """The run's status as soon as it holds for it."""
        for run in self.states(name, seconds):
            status: Json = run.get("status", {})
            if holds(status):
                return status
        raise AssertionError("unreachable: states() ends with an error")

    def scale(self, name: str, nodes: int) -> None:
        self._runs.patch_namespaced_custom_object_scale(
            *(*GROUP, self.bench.namespace, "trainingruns", name),
            {"spec": {"replicas": nodes}},
        )

    def delete(self, name: str) -> None:
        self._runs.delete_namespaced_custom_object(
            *(*GROUP, self.bench.namespace, "trainingruns", name)
        )

    def clear(self) -> None:
        """Deletes all runs, such as a failed test leaves, and does not wait for their end."""
        self.bench.cluster.kubectl(
            *("delete", "trun", "--all", "--wait=false", "-n", self.bench.namespace)
        )

    def delete_job(self, job: str, how: str) -> None:
        """As a user would, and returns when it is gone; `how` is kubectl's `--cascade`."""
        self.bench.cluster.kubectl(
            *("delete", "job", job, f"--cascade={how}", "-n", self.bench.namespace)
        )

    def end(self, name: str, seconds: int = 300) -> Json:
        """The run's status when it is over."""
        over = ("Complete", "Failed")
        return self.until(name, lambda status: status.get("phase") in over, seconds)

    def journal(self, name: str) -> list[tuple[int, int, int, str]]:
        """Step, position, size and signature of the samples, of each step."""
        keys = ("step", "position", "size", "samples")
        return [tuple(line[k] for k in keys) for line in self.bench.journal(name)]

    def wait_until_empty(self) -> None:
        """Returns when nothing of any run is left in the namespace."""
        for kind in ("trun", "jobs", "pods", "services", "configmaps", "networkpolicies"):
            chosen = ("--all",) if kind == "trun" else ("-l", "daybreak.dev/run")
            self.wait_until_gone(kind, *chosen)

    @contextmanager
    def meddling(self, name: str) -> Iterator[None]:
        """Somebody else writes to the run, ten times a second, as long as the block lasts."""
        over = Event()

        def meddle() -> None:
            for number in itertools.count():
                body = {"metadata": {"annotations": {"meddled": str(number)}}}
                try:
                    self._runs.patch_namespaced_custom_object(
                        *(*GROUP, self.bench.namespace, "trainingruns", name), body
                    )
                except client.ApiException as error:
                    if error.status != 404:  # not yet there
                        raise
                if over.wait(0.1):
                    return

        with ThreadPoolExecutor(1) as pool:
            meddler = pool.submit(meddle)
            try:
                yield
            finally:
                over.set()
            meddler.result()

    def get(self, name: str) -> Json:
        run: Json = self._runs.get_namespaced_custom_object(
            *(*GROUP, self.bench.namespace, "trainingruns", name)
        )
        return run

    def job_names(self, name: str) -> list[str]:
        """Of the run's Jobs."""
        chosen = f"daybreak.dev/run={name}"
        found = self._batch.list_namespaced_job(self.bench.namespace, label_selector=chosen)
        return sorted(job.metadata.name for job in found.items)

    def live_pods(self, name: str) -> list[str]:
        """Of the run's pods, those that have not ended."""
        found = self._core.list_namespaced_pod(
            self.bench.namespace, label_selector=f"daybreak.dev/run={name}"
        )
        over = ("Succeeded", "Failed")
        return sorted(p.metadata.name for p in found.items if p.status.phase not in over)

    def node_of_worker(self, name: str, index: int) -> str:
        """The node of a worker that is at work."""
        chosen = f"daybreak.dev/run={name},batch.kubernetes.io/job-completion-index={index}"
        found = self._core.list_namespaced_pod(self.bench.namespace, label_selector=chosen)
        (node,) = [p.spec.node_name for p in found.items if p.status.phase == "Running"]
        return str(node)

    def lose(self, pod: str) -> None:
        """As the control plane does when it does not hear from the pod's node any more: the pod is
        deleted, for that reason, and stays."""
        reason = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "its node does not answer",
            "lastTransitionTime": rfc3339(datetime.now(UTC), "seconds"),
        }
        there = (pod, self.bench.namespace)
        self._core.patch_namespaced_pod_status(*there, {"status": {"conditions": [reason]}})
        self._core.delete_namespaced_pod(*there)

    def evict(self, pod: str) -> None:
        """As draining a node does."""
        metadata = client.V1ObjectMeta(name=pod)
        self._core.create_namespaced_pod_eviction(
            pod, self.bench.namespace, client.V1Eviction(metadata=metadata)
        )

    def wait_for_pods_to_go(self, name: str) -> None:
        """Returns when none of the run's pods is at work."""
        deadline = time.monotonic() + 150
        while left := self.live_pods(name):
            assert time.monotonic() < deadline, f"{left}\n{self.log(40)}"
            time.sleep(0.2)

    def wait_until_gone(self, kind: str, *chosen: str) -> None:
        self.bench.cluster.kubectl(
            *("wait", "--for=delete", kind, *chosen, "-n", self.bench.namespace, "--timeout=150s")
        )

    def wait_until_nothing_is_left(self, name: str) -> None:
        """Of that run."""
        self.wait_until_gone("trun", name)
        kinds = "jobs,pods,services,configmaps,networkpolicies"
        self.wait_until_gone(kinds, "-l", f"daybreak.dev/run={name}")

    def log(self, lines: int | None = None) -> str:
        """The last lines of our operators' log, or all of it."""
        written = (self._folder / "log").read_text().splitlines()
        return "\n".join(written if lines is None else written[-lines:])

    def follow_jobs(self) -> JobChanges:
        """What happens to the namespace's Jobs from now on, for `life`. Followed as it happens: the
        API server forgets it after a minute or two."""
        changes: JobChanges = SimpleQueue()
        since = self._batch.list_namespaced_job(self.bench.namespace).metadata.resource_version

        def follow() -> None:
            with suppress(Exception):  # the cluster has ended
                for change in watch.Watch().stream(
                    self._batch.list_namespaced_job,
                    self.bench.namespace,
                    resource_version=since,
                    timeout_seconds=_LONGEST_LIFE_SECONDS,
                ):
                    changes.put(change)

        Thread(target=follow, daemon=True).start()
        return changes

    def life(self, name: str, status: Json, changes: JobChanges) -> Life:
        """That of a run which is over; it began after `changes`."""
        jobs: dict[str, list[str]] = {}
        alive: set[str] = set()
        together = 0
        chosen = f"daybreak.dev/run={name}"
        found = self._batch.list_namespaced_job(self.bench.namespace, label_selector=chosen)
        left = {job.metadata.uid for job in found.items}
        while f"{name}-{status['attempt']}" not in jobs or alive != left:
            change = changes.get(timeout=60)
            metadata = change["object"].metadata
            if (metadata.labels or {}).get("daybreak.dev/run") != name:
                continue
            if change["type"] == "ADDED":
                jobs.setdefault(metadata.name, []).append(metadata.uid)
                alive.add(metadata.uid)
            elif change["type"] == "DELETED":
                alive.discard(metadata.uid)
            together = max(together, len(alive))
        pairs = (line.partition(": ")[::2] for line in self.bench.events(name).splitlines())
        return Life(
            status=status,
            journal=self.journal(name),
            jobs=jobs,
            together=together,
            events=Counter((reason, message) for reason, message in pairs),
            calls=(self._folder / "calls").read_text().splitlines(),
            log=self.log(40),
        )


@contextmanager
def set_up(cluster: Cluster, namespace: str, folder: Path, kubeconfig: Path) -> Iterator[Stage]:
    """A fresh namespace; at the end it is deleted, and its deletion not waited for."""
    folder.mkdir(mode=0o755)
    create_namespace(cluster, namespace)
    create_claims(cluster, namespace, folder)
    with cluster.admin_api() as api:
        played = Stage(Bench(cluster, namespace, folder), kubeconfig, api)
        try:
            yield played
        finally:
            played.close()
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
