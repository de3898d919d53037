"""Two operators race for the Lease on a real control plane: never two writers, and soon one."""

from __future__ import annotations

import itertools
import json
import os
import re
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

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

WAIT_SECONDS = 90.0
"""How long others may take, on a machine that is busy. That twenty are enough for a failover is
shown in virtual time (`tests/unit/operator/test_leader.py`)."""
TRIES = 3
LEASE = "daybreak"
SYSTEM = "daybreak-system"
_GAVE_UP = re.compile("this process ends: (not renewed for|the Lease is held by)")
_HERE = Path(__file__).parent
_RUN = {
    "workers": {"image": "ghcr.io/daybreak/trainer:0.1.0", "nodes": 1},
    "data": {"streams": [{"url": "s3://nowhere/data"}]},
    "recipe": {"preset": "smoke"},
    "checkpoint": {"storage": "s3://nowhere/checkpoints"},
    "suspend": True,
}


class LeaderGaveUp(Exception):  # noqa: N818 (no error: it is what a leader is to do)
    """An operator that was to lead could not renew its Lease and has ended: for some ten seconds
    the machine stood still. What comes next has no meaning then."""


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

    def check(self) -> None:
        """It runs, or had to give up."""
        if self.process.poll() is not None:
            assert _GAVE_UP.search(self.log()), self.log()
            raise LeaderGaveUp(self.log())

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

    def clear(self) -> None:
        """Ends all operators; nobody leads."""
        for operator in self.operators:
            operator.end()
        self.cluster.kubectl("delete", "lease", LEASE, "--ignore-not-found", "-n", SYSTEM)

    def wait_ready(self, *operators: Operator) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not all(operator.ready() for operator in operators):
            told = "\n".join(operator.log() for operator in operators)
            assert time.monotonic() < deadline, told
            for operator in operators:
                operator.check()
            time.sleep(0.2)

    def create(self, name: str) -> None:
        body = {
            "apiVersion": "daybreak.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": _RUN,
        }
        self.cluster.kubectl("create", "-f", "-", input=json.dumps(body))

    def wait_served(self, name: str, *operators: Operator) -> None:
        """Until an operator has written the run's status; one of these is to do it."""
        of = ("get", "trun", name, "-n", self.namespace, "-o", "jsonpath={.status.phase}")
        deadline = time.monotonic() + WAIT_SECONDS
        while self.cluster.kubectl(*of).stdout != "Suspended":
            told = "\n".join(operator.log() for operator in self.operators)
            assert time.monotonic() < deadline, f"{name}: not within {WAIT_SECONDS} s\n{told}"
            for operator in operators:
                operator.check()
            time.sleep(0.2)


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
    found.clear()
    for deployment in installed:
        devcluster.kubectl("scale", "--replicas=1", deployment, *system)


def test_another_operator_goes_on_and_never_two_write(race: Race) -> None:
    """The leader is frozen and wakes up when another leads: it ends without a write. Its successor
    is killed: the next one takes over. That one is told to stop: the last follows."""
    for number in range(TRIES):
        try:
            return _take_turns(race, f"try-{number}")
        except LeaderGaveUp as told:
            print(f"a leader gave up: {told}")
            written = [operator.written() for operator in race.operators]
            _assert_one_after_the_other(sorted(term for term in written if term))
            race.clear()
    pytest.fail("leaders give up again and again")


def _assert_one_after_the_other(terms: list[list[float]]) -> None:
    for earlier, later in itertools.pairwise(terms):
        assert max(earlier) < min(later)


def _leader_of(one: Operator, other: Operator) -> tuple[Operator, Operator]:
    """Who has the work, by what it wrote last, and the other, which wrote nothing as yet: or it has
    had the work, and given up."""
    standby, leader = sorted((one, other), key=lambda o: max(o.written(), default=0.0))
    if standby.written():
        standby.process.wait(WAIT_SECONDS)
        standby.check()
    assert leader.written()
    return leader, standby


def _take_turns(race: Race, name: str) -> None:
    pair = race.start(), race.start()
    race.wait_ready(*pair)
    race.create(f"{name}-first")
    race.wait_served(f"{name}-first", *pair)
    frozen, standby = _leader_of(*pair)

    frozen.check()
    frozen.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, frozen.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    frozen.check()
    began = time.monotonic()
    before = frozen.written()
    race.create(f"{name}-second")
    race.wait_served(f"{name}-second", standby)
    print(f"frozen: another worked after {time.monotonic() - began:.1f} s")
    race.create(f"{name}-third")  # something that it would do when it wakes up
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(WAIT_SECONDS) != 0
    assert frozen.written() == before, frozen.log()
    race.wait_served(f"{name}-third", standby)

    killed, next_one = standby, race.start()
    race.wait_ready(killed, next_one)
    assert _leader_of(killed, next_one) == (killed, next_one)
    killed.check()
    killed.process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    race.create(f"{name}-fourth")
    race.wait_served(f"{name}-fourth", next_one)
    print(f"killed: another worked after {time.monotonic() - began:.1f} s")

    last = race.start()
    race.wait_ready(next_one, last)
    next_one.check()
    next_one.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    race.create(f"{name}-fifth")
    race.wait_served(f"{name}-fifth", last)
    print(f"stopped: another worked after {time.monotonic() - began:.1f} s")
    assert next_one.process.wait(WAIT_SECONDS) == 0, next_one.log()
    race.create(f"{name}-sixth")  # the fifth may have been served by the one that was to stop
    race.wait_served(f"{name}-sixth", last)

    terms = [operator.written() for operator in (frozen, standby, next_one, last)]
    assert all(terms)
    _assert_one_after_the_other(terms)
