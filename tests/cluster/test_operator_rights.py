"""The operator asks the API server for all that `manifests/base` grants it, and for no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api_proxy import ApiProxy
from crashing_operator import Plan
from kubernetes import client
from lives import Json, Stage, later_schema, operator_kubeconfig, own_operators, set_up, spec
from rights import granted, right

from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_SHARED = "configmaps,services,networkpolicies"
"""What a run's attempts share."""
_OF_KUEUE = ("list", "workloads")
"""Used where Kueue is: `tests/e2e/test_kueue.py` has its words in a run's status."""


@pytest.fixture
def proxy(devcluster: Cluster) -> Iterator[ApiProxy]:
    with own_operators(devcluster), later_schema(devcluster), ApiProxy(devcluster) as proxy:
        lease = ("lease", "daybreak", "-n", "daybreak-system")
        devcluster.kubectl("delete", *lease, "--ignore-not-found")
        yield proxy


@pytest.fixture
def stage(
    devcluster: Cluster, proxy: ApiProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("rights")
    kubeconfig = operator_kubeconfig(devcluster, folder, proxy.url)
    with set_up(devcluster, "rights", folder / "rights", kubeconfig) as stage:
        yield stage


def test_every_right_is_used_and_no_other_is_asked_for(stage: Stage, proxy: ApiProxy) -> None:
    """A right that nobody uses does not belong into the manifests; one that is missing is refused
    here. The lives: a whole one under an operator that is elected, and a run whose children's names
    are taken."""
    assert stage.play("whole", Plan(elects=True)).status["phase"] == "Complete"
    _named_as_one_before_it(stage, "taken")
    asked = {right(call.method, call.path) for call in proxy.calls if call.status not in (0, 403)}
    assert asked - {None} == granted() - {_OF_KUEUE}
    assert proxy.never_allowed == []


def _named_as_one_before_it(stage: Stage, name: str) -> None:
    """The one before was deleted without its children. What has their names is named, one after the
    other, and when it is gone the run begins."""
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="credentials"))
    client.CoreV1Api(stage.api).create_namespaced_secret(stage.bench.namespace, secret)
    stream = {"url": "s3://bucket/data", "secretRef": {"name": "credentials"}}
    changes = spec(1, {}) | {"data": {"streams": [stream]}}
    there = ("-n", stage.bench.namespace)
    stage.apply(name, **changes)
    assert stage.end(name)["phase"] == "Complete"
    stage.bench.cluster.kubectl("delete", "trun", name, "--cascade=orphan", *there)
    stage.apply(name, **changes)
    stage.until(name, lambda s: _held_up_by(s, "exists and does not belong to this run"))
    stage.bench.cluster.kubectl("delete", _SHARED, "-l", f"daybreak.dev/run={name}", *there)
    stage.until(name, lambda s: _held_up_by(s, f"Job {name}-1"))
    stage.delete_job(f"{name}-1", "background")
    assert stage.end(name)["phase"] == "Complete"


def _held_up_by(status: Json, problem: str) -> bool:
    told = [c["message"] for c in status.get("conditions", []) if c["reason"] == "NameConflict"]
    return any(problem in message for message in told)
