"""The Helm chart renders what it promises, refuses what it does not know, and repeats nothing."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "daybreak"
KUBERNETES = "1.34.0"
Manifest = dict[str, Any]


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "hack" / "helm.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def render(*arguments: str) -> list[Manifest]:
    """What `helm install daybreak` would apply, with these extra arguments."""
    done = helm("template", "daybreak", str(CHART), "--namespace", "daybreak-system", *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def by_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


@pytest.fixture(scope="module")
def rendered() -> list[Manifest]:
    """The chart with its default values."""
    return render()


def test_helm_finds_no_fault() -> None:
    """`helm lint --strict` passes."""
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_defaults_hold_no_object_that_a_bare_cluster_does_not_know(
    rendered: list[Manifest],
) -> None:
    """Without values the chart needs nothing beyond Kubernetes itself, and every object is valid
    against its strict schema."""
    groups = {manifest["apiVersion"].split("/")[0] for manifest in rendered}
    assert groups == {
        *("v1", "apps", "policy", "networking.k8s.io"),
        *("rbac.authorization.k8s.io", "apiextensions.k8s.io"),
    }
    for manifest in rendered:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_crd_is_the_generated_one(rendered: list[Manifest]) -> None:
    """The chart's copy equals the generated CRD; rendered, it differs in labels and the annotation
    that keeps it at uninstall."""
    generated = ROOT / "manifests" / "base" / "crd.yaml"
    assert (CHART / "files" / "crd.yaml").read_bytes() == generated.read_bytes(), (
        "the chart's CRD is out of date: run `make generate`"
    )
    (crd,) = by_kind(rendered, "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    source = yaml.safe_load(generated.read_text())
    assert crd["spec"] == source["spec"]
    assert crd["metadata"]["name"] == source["metadata"]["name"]


def test_the_crd_can_be_left_out() -> None:
    """Where somebody else installs CRDs, the chart does not."""
    assert not by_kind(render("--set", "crd.install=false"), "CustomResourceDefinition")


def test_the_operator_meets_the_restricted_level(rendered: list[Manifest]) -> None:
    """Unprivileged, no capabilities, root file system read-only, and it names its command: that is
    what the development cluster, which has no images, starts."""
    (deployment,) = by_kind(rendered, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["command"][:2] == ["python", "-m"]


def test_two_replicas_of_which_one_leads(rendered: list[Manifest]) -> None:
    """Both ways to install have a standby, elect a leader by the same Lease, which they may write,
    and let a drain take one at a time; who scrapes the operator may reach it."""
    base = ROOT / "manifests" / "base"
    kustomized = [
        manifest
        for part in ("operator", "rbac", "disruptions", "network")
        for manifest in yaml.safe_load_all((base / f"{part}.yaml").read_text())
    ]
    for manifests in (rendered, kustomized):
        (deployment,) = by_kind(manifests, "Deployment")
        assert deployment["spec"]["replicas"] == 2
        assert deployment["spec"]["strategy"]["type"] == "RollingUpdate"
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert "--leader-elect" in container["args"]
        (role,) = by_kind(manifests, "Role")
        assert [(rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"]] == [
            (None, ["create"]),
            (["daybreak"], ["get", "update"]),
        ]
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        (budget,) = by_kind(manifests, "PodDisruptionBudget")
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels
        (policy,) = by_kind(manifests, "NetworkPolicy")
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
        (rule,) = policy["spec"]["ingress"]
        assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
        probes = {
            container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")
        }
        assert probes == {"/healthz", "/readyz"}


def test_nodes_are_read_when_that_is_allowed() -> None:
    """With a ClusterRole of its own, also where the operator serves some namespaces only."""
    manifests = render("--set", "nodes.read=true", "--set", "watchNamespaces={research}")
    (role,) = by_kind(manifests, "ClusterRole")[:1]
    assert rules([role], "ClusterRole") == {("", "nodes", "list"), ("", "pods", "list")}


def test_installations_for_some_namespaces_live_side_by_side() -> None:
    """Of one name in two namespaces: nothing that is no namespace's is both's, but for the CRD,
    which the second leaves out."""

    def cluster_wide(namespace: str) -> set[tuple[str, str]]:
        made = render(
            *("--namespace", namespace, "--set", "crd.install=false"),
            *("--set", "nodes.read=true", "--set", f"watchNamespaces={{{namespace}}}"),
        )
        spaceless = [manifest for manifest in made if "namespace" not in manifest["metadata"]]
        return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in spaceless}

    one, other = cluster_wide("one"), cluster_wide("other")
    assert one
    assert not one & other


def test_what_a_cluster_has_its_own_way_of_is_a_value() -> None:
    """Replicas, priority, and who guards the network."""
    manifests = render(
        *("--set", "replicas=1", "--set", "priorityClassName=system-cluster-critical"),
        *("--set", "networkPolicy.enabled=false"),
    )
    (deployment,) = by_kind(manifests, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    pod = deployment["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert not by_kind(manifests, "NetworkPolicy")


def test_monitors_and_dashboards_are_there_when_asked_for() -> None:
    """PodMonitors select the operator and the workers of every namespace that it serves; alerts and
    dashboards are those of the chart's files."""
    manifests = render(
        *("--set", "podMonitors.enabled=true", "--set", "podMonitors.labels.release=prom"),
        *("--set", "alerts.enabled=true", "--set", "dashboards.enabled=true"),
    )
    (alerts,) = by_kind(manifests, "PrometheusRule")
    assert alerts["spec"] == yaml.safe_load((CHART / "alerts" / "rules.yaml").read_text())
    operator, workers = by_kind(manifests, "PodMonitor")
    (deployment,) = by_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert operator["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert workers["spec"]["namespaceSelector"] == {"any": True}
    assert workers["spec"]["sampleLimit"] > 0  # a user's pod may serve any page
    assert operator["metadata"]["labels"]["release"] == "prom"
    (dashboards,) = by_kind(manifests, "ConfigMap")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    for path in (CHART / "dashboards").glob("*.json"):
        assert json.loads(dashboards["data"][path.name]) == json.loads(path.read_text())

    some = render("--set", "podMonitors.enabled=true", "--set", "watchNamespaces={research,art}")
    _, workers = by_kind(some, "PodMonitor")
    assert workers["spec"]["namespaceSelector"] == {"matchNames": ["research", "art"]}


def test_every_way_to_install_is_of_one_version(rendered: list[Manifest]) -> None:
    """The operator's image in the chart and in the kustomize base, and the examples' worker image,
    carry the project's version: operator and trainer have to agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (deployment,) = by_kind(rendered, "Deployment")
    (base,) = yaml.safe_load_all((ROOT / "manifests" / "base" / "operator.yaml").read_text())
    images = {
        manifest["spec"]["template"]["spec"]["containers"][0]["image"]
        for manifest in (deployment, base)
    }
    assert images == {f"ghcr.io/daybreak/operator:{project['version']}"}
    for example in (ROOT / "manifests" / "examples").glob("*.yaml"):
        (run,) = by_kind(list(yaml.safe_load_all(example.read_text())), "TrainingRun")
        image = run["spec"]["workers"]["image"]
        assert image == f"ghcr.io/daybreak/trainer:{project['version']}", example.name


def rules(manifests: list[Manifest], kind: str) -> set[tuple[str, str, str]]:
    """Group, resource and verb of everything that the operator's own role allows."""
    return {
        (group, resource, verb)
        for manifest in by_kind(manifests, kind)
        if "aggregat" not in json.dumps(manifest["metadata"])
        for rule in manifest["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_every_way_to_install_grants_the_same(rendered: list[Manifest]) -> None:
    """The chart, for all namespaces or for some, and the kustomize base allow the operator the
    same, and neither makes or changes pods nor lists Secrets."""
    base = list(yaml.safe_load_all((ROOT / "manifests" / "base" / "rbac.yaml").read_text()))
    allowed = rules(rendered, "ClusterRole")
    assert allowed == rules(base, "ClusterRole")
    some = render("--set", "watchNamespaces={research,art}")
    roles = by_kind(some, "Role")
    served = [role for role in roles if role["metadata"]["namespace"] != "daybreak-system"]
    assert allowed == rules(served, "Role")
    assert not rules(some, "ClusterRole")
    assert {role["metadata"]["namespace"] for role in served} == {"research", "art"}
    (deployment,) = by_kind(some, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["--namespace=research", "--namespace=art"]
    assert {verb for group, resource, verb in allowed if resource == "pods"} == {
        "list",
        "watch",
        "delete",
    }
    assert {verb for group, resource, verb in allowed if resource == "secrets"} == {"get"}


@pytest.mark.parametrize(
    "setting",
    [
        "image.repo=x",
        "crd.instal=true",
        "image.pullPolicy=Sometimes",
        "replica=3",
        "watchNamespaces={My_Team}",
    ],
)
def test_a_mistyped_value_is_refused(setting: str) -> None:
    """The schema names the value, instead of ignoring it."""
    done = helm("template", "daybreak", str(CHART), "--set", setting)
    assert done.returncode != 0
    name = setting.split("=")[0].split(".")[-1]
    assert name in done.stderr


def test_every_value_is_in_the_schema_and_documented() -> None:
    """values.yaml and values.schema.json name the same values."""

    def names(node: Any, prefix: str = "") -> set[str]:
        found = set()
        for key, value in node.items():
            found.add(f"{prefix}{key}")
            if isinstance(value, dict) and value:
                found |= names(value, f"{prefix}{key}.")
        return found

    def declared(schema: Any, prefix: str = "") -> set[str]:
        found = set()
        for key, value in schema.get("properties", {}).items():
            found |= {f"{prefix}{key}"} | declared(value, f"{prefix}{key}.")
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    free = ("resources.requests.", "resources.limits.", "dashboards.labels.")
    written = {name for name in names(values) if not name.startswith(free)}
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert written == declared(schema) - {"global"}
