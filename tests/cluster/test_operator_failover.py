"""Two operators race for the Lease on a real control plane: never two writers, and soon one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from free_ports import free_port
from lives import operator_kubeconfig
from runs import install_rights

from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

WAIT_SECONDS = 90.0
"""How long others may take, on a machine that is busy. That twenty are enough for a failover is
shown in virtual time (`tests/unit/operator/test_leader.py`)."""
LEASE = "daybreak"
SYSTEM = "daybreak-system"
_HERE = Path(__file__).parent
_RUN = {
    "workers": {"image": "ghcr.io/daybreak/trainer:0.1.0", "nodes": 1},
    "data": {"streams": [{"url": "s3://nowhere/data"}]},
    "recipe": {"preset": "smoke"},
    "checkpoint": {"storage": "s3://nowhere/checkpoints"},
    "suspend": True,
}


@dataclass
class Operator:
    """A process with the rights of the installed operator."""

    name: str
    folder: Path
    port: int
    environment: dict[str, str]
    namespace: str
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.writes.touch()
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, _HERE / "recording_operator.py", self.writes),
                    *("--namespace", self.namespace, "--http-port", str(self.port)),
                    *("--leader-elect", "--lease-namespace", SYSTEM, "--log-format", "json"),
                ],
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    @property
    def writes(self) -> Path:
        return self.folder / f"{self.name}.writes"

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()

    def ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}/readyz"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def written(self) -> list[float]:
        """When it wrote something else than the Lease."""
        lines = [line.split() for line in self.writes.read_text().splitlines()]
        return [float(at) for at, _, path in lines if "/leases" not in path]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Race:
    cluster: Cluster
    namespace: str
    folder: Path
    environment: dict[str, str]
    operators: list[Operator] = field(default_factory=list)

    def start(self) -> Operator:
        number = len(self.operators)
        operator = Operator(
            f"operator-{number}", self.folder, free_port(), self.environment, self.namespace
        )
        self.operators.append(operator)
        return operator

    def wait_ready(self, *operators: Operator) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(operator.ready() for operator in operators):
            told = "\n".join(operator.log() for operator in operators)
            assert time.monotonic() < deadline, told
            time.sleep(0.2)

    def holder(self) -> str:
        out = self.cluster.kubectl(
            "get", "lease", LEASE, "-n", SYSTEM, "-o", "jsonpath={.spec.holderIdentity}"
        )
        return out.stdout.strip()

    def create(self, name: str) -> None:
        body = {
            "apiVersion": "daybreak.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": _RUN,
        }
        self.cluster.kubectl("create", "-f", "-", input=json.dumps(body))

    def wait_served(self, name: str) -> None:
        """Until an operator has written the run's status."""
        of = ("get", "trun", name, "-n", self.namespace, "-o", "jsonpath={.status.phase}")
        deadline = time.monotonic() + WAIT_SECONDS
        while self.cluster.kubectl(*of).stdout != "Suspended":
            told = "\n".join(operator.log() for operator in self.operators)
            assert time.monotonic() < deadline, f"{name}: not within {WAIT_SECONDS} s\n{told}"
            time.sleep(0.2)

    def leader(self) -> tuple[Operator, Operator]:
        """Of the two that run: who has the work, by what it wrote last, and the other."""
        one, other = [o for o in self.operators if o.process.poll() is None]
        latest = max((one, other), key=lambda o: max(o.written(), default=0.0))
        return (one, other) if latest is one else (other, one)


@pytest.fixture
def race(devcluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Race]:
    """Operators with the rights of the installed one, which makes room for them."""
    install_rights(devcluster)
    system = ("-n", SYSTEM)
    installed = devcluster.kubectl("get", "deployment", "-o", "name", *system).stdout.split()
    for deployment in installed:
        devcluster.kubectl("scale", "--replicas=0", deployment, *system)
        devcluster.kubectl("wait", "--for=delete", "pods", "--all", *system, "--timeout=150s")
    tmp_path.parent.chmod(0o755)
    kubeconfig = operator_kubeconfig(devcluster, tmp_path)
    environment = devcluster.environment() | {"KUBECONFIG": str(kubeconfig)}
    found = Race(devcluster, namespace, tmp_path, environment)
    yield found
    for operator in found.operators:
        operator.end()
    devcluster.kubectl("delete", "lease", LEASE, "--ignore-not-found", *system)
    for deployment in installed:
        devcluster.kubectl("scale", "--replicas=1", deployment, *system)


def test_another_operator_goes_on_and_never_two_write(race: Race) -> None:
    """The leader is frozen and wakes up when another leads: it ends without a write. Its successor
    is killed: the next one takes over. That one is told to stop: the last follows."""
    race.wait_ready(race.start(), race.start())
    race.create("first")
    race.wait_served("first")
    frozen, standby = race.leader()
    assert not standby.written()
    assert frozen.written()

    frozen.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, frozen.process.pid, os.WSTOPPED | os.WNOWAIT)
    began = time.monotonic()
    before = frozen.written()
    race.create("second")
    race.wait_served("second")
    print(f"frozen: another worked after {time.monotonic() - began:.1f} s")
    race.create("third")  # something that it would do when it wakes up
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(WAIT_SECONDS) != 0
    assert frozen.written() == before, frozen.log()
    race.wait_served("third")

    killed, next_one = standby, race.start()
    race.wait_ready(next_one)
    assert not next_one.written()
    killed.process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    race.create("fourth")
    race.wait_served("fourth")
    print(f"killed: another worked after {time.monotonic() - began:.1f} s")

    last = race.start()
    race.wait_ready(last)
    next_one.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    race.create("fifth")
    race.wait_served("fifth")
    print(f"stopped: another worked after {time.monotonic() - began:.1f} s")
    assert next_one.process.wait(WAIT_SECONDS) == 0, next_one.log()

    terms = [operator.written() for operator in (frozen, standby, next_one, last)]
    assert all(terms)
    for earlier, later in itertools.pairwise(terms):
        assert max(earlier) < min(later)
