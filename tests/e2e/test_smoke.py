"""The whole path on any cluster: the chart's operator, a prepared dataset, a run that completes.

With `DAYBREAK_E2E_KUBECONFIG` the cluster is the one that this file names, such as kind's, and the
images `$IMAGE_PREFIX/{operator,trainer}:$IMAGE_TAG` have to be there. Otherwise a development
cluster starts. On either the chart is installed with helm, so that the operator has the permissions
that the chart gives, and no others. The tests stand in the order of a release's life.
"""

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml
from dashboard import ONLY_AFTER, ONLY_ON_A_GPU, QUERIES, resolved
from kube import ACCOUNT, CHART, CLAIMS, RELEASE, ROOT, SYSTEM, Json, Kube, claim
from pod_monitors import Pods, scrape_config
from prometheus import Prometheus

from daybreak_devcluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(1200)]

EXAMPLE = ROOT / "manifests" / "examples" / "smoke.yaml"
RUN, RUN_SECONDS = "smoke", 900
SCRAPE_INTERVAL = "1s"


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A cluster with the chart installed."""
    if kubeconfig := os.environ.get("DAYBREAK_E2E_KUBECONFIG"):
        prefix, tag = os.environ["IMAGE_PREFIX"], os.environ["IMAGE_TAG"]
        yield from _with_chart(Kube({**os.environ, "KUBECONFIG": kubeconfig}, prefix, tag))
        return
    with Cluster(tmp_path_factory.mktemp("smoke") / "state") as cluster:
        helm = cluster.info.state_dir / "helm"
        homes = {f"HELM_{name}_HOME": str(helm / name) for name in ("CACHE", "CONFIG", "DATA")}
        environment = {**cluster.environment(), **homes}
        yield from _with_chart(Kube(environment, "not-looked-at", "none", cluster))
        assert cluster.failure() is None


def _with_chart(kube: Kube) -> Iterator[Kube]:
    with kube.namespace(SYSTEM):
        kube.chart()
        yield kube
        kube.helm("uninstall", RELEASE, "--ignore-not-found")


@dataclass(frozen=True)
class Ended:
    """The smoke run, when it has ended and is still there."""

    namespace: str
    phases: list[str]
    status: Json
    between: tuple[float, float]
    """When it was applied and when it had ended, Unix time."""
    prometheus: Prometheus | None
    """What scraped it; None where the cluster's pods cannot be reached from here."""


@pytest.fixture(scope="module")
def prometheus(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """One that scrapes the pods that the chart's PodMonitors select, as they say."""
    if kube.devcluster is None:
        yield None
        return
    rendered = kube.helm("template", RELEASE, str(CHART), "--set", "podMonitors.enabled=true")
    monitors = [m for m in yaml.safe_load_all(rendered) if m and m["kind"] == "PodMonitor"]
    with kube.devcluster.admin_api() as api, Pods(api) as pods:
        configs = [scrape_config(monitor, pods.url, SCRAPE_INTERVAL) for monitor in monitors]
        with Prometheus(tmp_path_factory.mktemp("prometheus"), configs) as server:
            yield server


@pytest.fixture(scope="module")
def ended(kube: Kube, prometheus: Prometheus | None) -> Iterator[Ended]:
    """The example, applied as it is but for its image, in a namespace of its own."""
    with kube.namespace(f"smoke-{secrets.token_hex(3)}") as namespace:
        kube.apply(*(claim(name) for name in CLAIMS), namespace=namespace)
        prepare = ["daybreak", "prepare", "digits", "/data/datasets/digits"]
        kube.run_job("prepare", prepare, namespace)
        start = time.time()
        phases = _run(kube, namespace)
        status = kube.get("trainingrun", RUN, namespace).get("status", {})
        if prometheus is not None:
            last = f'daybreak_operator_run_alignment_ratio{{namespace="{namespace}"}}'
            prometheus.wait_for([last])
        yield Ended(namespace, phases, status, (start, time.time()), prometheus)


def _run(kube: Kube, namespace: str) -> list[str]:
    """Apply the example; the phases that it went through until it ended."""
    run = yaml.safe_load(EXAMPLE.read_text())
    run["spec"]["workers"]["image"] = f"{kube.image_prefix}/trainer:{kube.image_tag}"
    kube.apply(run, namespace=namespace)
    seen: list[str] = []
    for phase in kube.phases(RUN, namespace, RUN_SECONDS):
        seen.append(phase)
        if phase in ("Complete", "Failed"):
            break
    return seen


def test_the_operator_has_what_the_chart_grants_and_no_more(kube: Kube) -> None:
    """Its pod runs under the chart's ServiceAccount and holds no other credentials. Beside what
    every account may do, that one may do what the chart's role says, everywhere, and nothing else.
    """
    deployment = kube.get("deployment", RELEASE, SYSTEM)
    pod = deployment["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == RELEASE
    assert "volumes" not in pod
    assert {variable["name"] for variable in pod["containers"][0]["env"]} == {"DAYBREAK_POD_IP"}

    for namespace in ("default", "kube-system"):
        everybody = kube.rights(f"system:serviceaccount:{SYSTEM}:default", namespace)
        assert kube.rights(ACCOUNT, namespace) - everybody == _granted(kube)


def _granted(kube: Kube) -> set[tuple[str, str]]:
    """Resource and verb of each rule of the chart's role, as `kubectl auth can-i --list` names
    them."""
    rules = kube.get("clusterrole", RELEASE, SYSTEM)["rules"]
    return {
        (_listed(resource, group), verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _listed(resource: str, group: str) -> str:
    name, slash, subresource = resource.partition("/")
    return f"{name}.{group}{slash}{subresource}" if group else resource


def test_the_smoke_run_completes(kube: Kube, ended: Ended) -> None:
    """It trains on two workers, is judged and exported, at the first attempt, and the API server
    refuses the operator nothing."""
    assert ended.phases[-1:] == ["Complete"], _story(kube, ended.namespace)
    status = ended.status
    assert status["attempt"] == 1, _story(kube, ended.namespace)
    assert status["progress"]["percent"] == 100
    assert status["checkpoint"]["step"] == status["progress"]["totalSteps"]
    assert status["evaluation"]["benchmark"] == "digits"
    assert "forbidden" not in kube.operator_log().lower()


def _story(kube: Kube, namespace: str) -> str:
    """What a person would ask for when the run did not end well."""
    described = kube.kubectl("-n", namespace, "describe", "trainingrun", RUN)
    pods = kube.kubectl("-n", namespace, "get", "pods", "-o", "wide")
    return "\n".join((described, pods, kube.operator_log()[-5000:]))


def _shown(ended: Ended, name: str) -> list[tuple[dict[str, str], list[float]]]:
    """What one query of the dashboard shows of the run: each series' labels and values."""
    if ended.prometheus is None:
        pytest.skip("the pods of this cluster cannot be scraped from here")
    asked = resolved(QUERIES[name], namespace=ended.namespace, run=RUN)
    return ended.prometheus.between(asked, *ended.between)


@pytest.mark.parametrize("name", [n for n in QUERIES if n not in ONLY_ON_A_GPU + ONLY_AFTER])
def test_every_query_of_the_dashboard_shows_the_run(ended: Ended, name: str) -> None:
    """A Prometheus set up by the chart's PodMonitors has scraped the operator and the workers, and
    each query has a finite value at some second of the run."""
    assert _shown(ended, name), f"{name}: nothing in {ended.between}"


@pytest.mark.parametrize("name", [*ONLY_ON_A_GPU, *ONLY_AFTER])
def test_what_there_is_not_is_not_shown(ended: Ended, name: str) -> None:
    """Without GPUs there is no MFU, not a guess; without a restart there is none to count, and in
    so few steps no rank is called slow; a claim's data needs no cache."""
    assert not _shown(ended, name)


def test_the_dashboard_says_what_the_status_says(ended: Ended) -> None:
    """Both workers answered, the last step and its commit were seen before worker 0 ended, and the
    result is still there after that."""
    total = ended.status["progress"]["totalSteps"]
    for name, last in (
        ("Workers answering A", 2),
        ("Steps done A", 1),
        ("Step and last commit A", total),
        ("Step and last commit B", total),
    ):
        ((_, values),) = _shown(ended, name)
        assert max(values) == last, name
    by_tag = {
        labels["tag"]: values[-1] for labels, values in _shown(ended, "Prompt alignment by tag A")
    }
    assert by_tag == {
        tag: float(share) for tag, share in ended.status["evaluation"]["alignmentByTag"].items()
    }


def test_a_deleted_run_leaves_checkpoint_and_model(kube: Kube, ended: Ended) -> None:
    """Its objects go; the files stay."""
    namespace = ended.namespace
    kube.kubectl("-n", namespace, "delete", "trainingrun", RUN, "--timeout=120s")
    kube.kubectl(
        *("-n", namespace, "wait", "--for=delete", "--timeout=120s"),
        *("pods,jobs,services,configmaps", "-l", f"daybreak.dev/run={RUN}"),
        seconds=150,
    )
    kept = kube.run_job("list", ["find", "/data", "-type", "f"], namespace).split()
    assert any(path.endswith("/COMMIT.json") for path in kept)
    assert any(path.startswith("/data/models/") and "model_index" in path for path in kept)


def test_it_can_be_upgraded_to_serve_some_namespaces_only(kube: Kube, ended: Ended) -> None:
    """With `watchNamespaces` the operator has its rights in these namespaces and in no other: a run
    there is looked at, one elsewhere is not."""
    served, token = ended.namespace, secrets.token_hex(3)
    with kube.namespace(f"elsewhere-{token}") as elsewhere:
        notes = kube.chart(f"watchNamespaces={{{served}}}")
        assert f"serves the namespaces {served}" in notes
        everybody = kube.rights(f"system:serviceaccount:{SYSTEM}:default", "default")
        assert kube.rights(ACCOUNT, elsewhere) == everybody
        assert {"create", "delete"} <= {
            verb for what, verb in kube.rights(ACCOUNT, served) if what == "jobs.batch"
        }
        run = yaml.safe_load(EXAMPLE.read_text())
        run["spec"]["checkpoint"]["persistentVolumeClaim"]["claimName"] = "not-there"
        for namespace in (elsewhere, served):
            kube.apply(run, namespace=namespace)
        phase = "jsonpath={.status.phase}"
        kube.kubectl(
            *("-n", served, "wait", f"--for={phase}=Pending", f"trainingrun/{RUN}"),
            "--timeout=150s",
        )
        assert "status" not in kube.get("trainingrun", RUN, elsewhere)
        assert "forbidden" not in kube.operator_log().lower()


def test_uninstalled_it_leaves_the_runs_and_can_come_back(kube: Kube, ended: Ended) -> None:
    """CRD and runs outlive the release; installed again, the operator finds them."""
    kube.helm("uninstall", RELEASE, "--wait")
    left = kube.kubectl(
        *(
            "get",
            "--all-namespaces",
            "--output=name",
            "--selector=app.kubernetes.io/part-of=daybreak",
        ),
        "deployments,serviceaccounts,configmaps,roles,rolebindings,clusterroles,clusterrolebindings",
    )
    assert not left
    assert kube.get("trainingrun", RUN, ended.namespace)["status"]["phase"] == "Pending"
    kube.chart()
    kube.apply(claim("not-there"), namespace=ended.namespace)
    kube.kubectl(
        *("-n", ended.namespace, "wait", "--for=create", f"job/{RUN}-1", "--timeout=150s"),
    )
