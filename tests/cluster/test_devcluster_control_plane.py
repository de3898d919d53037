"""The development cluster behaves as a Kubernetes cluster does, where Daybreak relies on it.

One cluster without nodes serves this file: what is tested is the control plane alone.
"""

import base64
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from daybreak_devcluster.cluster import Cluster, KubectlError
from daybreak_devcluster.crds import await_crd
from daybreak_devcluster.pki import Authority

pytestmark = pytest.mark.cluster

RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without nodes, shared by this file."""
    with Cluster(tmp_path_factory.mktemp("control-plane") / "state", nodes=()) as cluster:
        yield cluster
        assert cluster.failure() is None


@pytest.fixture
def space(control_plane: Cluster) -> str:
    """A fresh namespace that enforces the `restricted` Pod Security level, with its default
    ServiceAccount; it ends with the cluster."""
    name = f"test-{secrets.token_hex(4)}"
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply(control_plane, resource("v1", "Namespace", name, labels=level))
    control_plane.kubectl(
        "-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=120s"
    )
    return name


def resource(
    api_version: str, kind: str, name: str, *, labels: dict[str, str] | None = None, **rest: Any
) -> dict[str, Any]:
    metadata = {"name": name, **({"labels": labels} if labels else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def apply(cluster: Cluster, manifest: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    """Server-side apply; returns the object as the server has it."""
    arguments = ("-n", namespace, "apply", "--server-side", "-o", "json", "-f", "-")
    answer: dict[str, Any] = json.loads(
        cluster.kubectl(*arguments, input=json.dumps(manifest)).stdout
    )
    return answer


def pod_spec(**security: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "none", "securityContext": {**RESTRICTED, **security}}
    return {"restartPolicy": "Never", "containers": [container]}


def get(cluster: Cluster, path: str, token: str | None = None) -> int:
    """The HTTP status of a GET request without a client certificate."""
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    authority = document["clusters"][0]["cluster"]["certificate-authority-data"]
    context = ssl.create_default_context(cadata=base64.b64decode(authority).decode())
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(cluster.info.server + path, headers=headers), context=context) as done:
            return int(done.status)
    except HTTPError as refused:
        with refused:
            return refused.code


def test_who_is_nobody_may_do_nothing(control_plane: Cluster) -> None:
    """Without credentials a request is forbidden, with a made-up token it is unauthorized."""
    assert get(control_plane, "/api/v1/namespaces") == 403
    assert get(control_plane, "/api/v1/namespaces", token="made-up") == 401


def test_a_service_account_may_do_what_its_role_says(control_plane: Cluster, space: str) -> None:
    """A bound token authenticates; RBAC refuses it until a RoleBinding allows, and only that."""
    token = control_plane.kubectl("-n", space, "create", "token", "default").stdout.strip()
    pods = f"/api/v1/namespaces/{space}/pods"
    assert get(control_plane, pods, token) == 403
    kubectl = ("-n", space, "create")
    control_plane.kubectl(*kubectl, "role", "reader", "--verb=list", "--resource=pods")
    control_plane.kubectl(
        *kubectl, "rolebinding", "reader", "--role=reader", f"--serviceaccount={space}:default"
    )
    assert get(control_plane, pods, token) == 200
    assert get(control_plane, f"/api/v1/namespaces/{space}/secrets", token) == 403
    assert get(control_plane, "/api/v1/namespaces/kube-system/pods", token) == 403


def test_pod_security_refuses_what_restricted_forbids(control_plane: Cluster, space: str) -> None:
    """A pod that may run as root is refused with the field's name; a conforming one is accepted."""
    with pytest.raises(KubectlError, match=r"violates PodSecurity \"restricted.*runAsNonRoot"):
        apply(control_plane, resource("v1", "Pod", "bad", spec=pod_spec(runAsNonRoot=False)), space)
    good = apply(control_plane, resource("v1", "Pod", "good", spec=pod_spec()), space)
    assert good["status"]["phase"] == "Pending"


def test_an_indexed_job_makes_its_pods_and_takes_them_along(
    control_plane: Cluster, space: str
) -> None:
    """The Job controller makes one pod per index, named so; foreground deletion removes Job and
    pods; a headless Service needs no endpoint controller."""
    selector = {"app": "worker"}
    service = {"clusterIP": "None", "selector": selector}
    made = apply(control_plane, resource("v1", "Service", "run-workers", spec=service), space)
    assert made["spec"]["clusterIP"] == "None"

    template = {
        "metadata": {"labels": selector},
        "spec": {**pod_spec(), "subdomain": "run-workers"},
    }
    job = {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": template,
    }
    apply(control_plane, resource("batch/v1", "Job", "run-1", spec=job), space)
    kubectl = ("-n", space)
    for index in (0, 1):
        label = f"batch.kubernetes.io/job-completion-index={index}"
        control_plane.kubectl(
            *kubectl, "wait", "--for=create", "pod", "-l", label, "--timeout=120s"
        )
    pods = json.loads(control_plane.kubectl(*kubectl, "get", "pods", "-o", "json").stdout)["items"]
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["run-1-0", "run-1-1"]

    control_plane.kubectl(
        *kubectl, "delete", "job", "run-1", "--cascade=foreground", "--timeout=120s"
    )
    assert control_plane.kubectl(*kubectl, "get", "pods", "-o", "name").stdout == ""
    endpoints = ("get", "endpointslices", "-A", "-o", "name")
    assert control_plane.kubectl(*endpoints).stdout == ""


def test_a_custom_resource_s_rules_are_enforced(control_plane: Cluster) -> None:
    """CEL rules and defaults of a CRD work, and the message of a rule reaches the user."""
    spec = {
        "type": "object",
        "properties": {
            "low": {"type": "integer", "default": 1},
            "high": {"type": "integer"},
        },
        "x-kubernetes-validations": [{"rule": "self.low <= self.high", "message": "low over high"}],
    }
    schema = {"type": "object", "properties": {"spec": spec}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    crd = {
        "group": "test.example",
        "scope": "Namespaced",
        "names": {"kind": "Range", "plural": "ranges", "singular": "range"},
        "versions": [version],
    }
    definition = resource(
        "apiextensions.k8s.io/v1", "CustomResourceDefinition", "ranges.test.example", spec=crd
    )
    apply(control_plane, definition)
    await_crd(control_plane, "ranges.test.example")
    made = apply(control_plane, resource("test.example/v1", "Range", "good", spec={"high": 3}))
    assert made["spec"]["low"] == 1
    with pytest.raises(KubectlError, match="low over high"):
        apply(control_plane, resource("test.example/v1", "Range", "bad", spec={"high": 0}))


def test_what_an_owner_leaves_is_collected(control_plane: Cluster, space: str) -> None:
    """The garbage collector deletes an object after its owner; deleting a namespace empties it."""
    owner = apply(control_plane, resource("v1", "ConfigMap", "owner"), space)
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    owned = resource("v1", "ConfigMap", "owned")
    owned["metadata"]["ownerReferences"] = [reference]
    apply(control_plane, owned, space)
    control_plane.kubectl("-n", space, "delete", "configmap", "owner")
    control_plane.kubectl("-n", space, "wait", "--for=delete", "configmap/owned", "--timeout=120s")
    control_plane.kubectl("delete", "namespace", space, "--timeout=120s")


class Kubelet:
    """An HTTPS server in a node's place that notes who asks for logs."""

    def __init__(self, authority: Path) -> None:
        self.callers: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                connection: Any = self.connection
                outer.callers.append(connection.getpeercert()["subject"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(f"asked for {self.path.split('?')[0]}".encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        directory = authority.parent.parent
        Authority("kubelet").server("node", ["127.0.0.1"]).write(directory, "test-kubelet")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "test-kubelet.crt", directory / "test-kubelet.key")
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def port(self) -> int:
        port: int = self.server.server_address[1]
        return port

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_pods_are_scheduled_and_logs_are_asked_for_with_a_certificate(
    control_plane: Cluster, space: str
) -> None:
    """The scheduler binds a pod to a registered node, and `kubectl logs` makes the API server call
    the node's HTTPS port with a client certificate that the cluster's authority signed."""
    kubelet = Kubelet(control_plane.info.state_dir / "pki" / "ca.crt")
    try:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "Up", "message": "up"}
        status = {
            "capacity": {"cpu": "1", "memory": "1Gi", "pods": "5"},
            "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "5"},
            "conditions": [{**ready, "lastHeartbeatTime": now, "lastTransitionTime": now}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
        }
        node = resource("v1", "Node", "by-hand", status=status)
        control_plane.kubectl("create", "-f", "-", input=json.dumps(node))
        apply(control_plane, resource("v1", "Pod", "talker", spec=pod_spec()), space)
        kubectl = ("-n", space)
        control_plane.kubectl(
            *kubectl, "wait", "--for=condition=PodScheduled", "pod/talker", "--timeout=120s"
        )
        said = control_plane.kubectl(*kubectl, "logs", "talker", "--container=main").stdout
        assert said == f"asked for /containerLogs/{space}/talker/main"
        assert (("commonName", "kube-apiserver-kubelet-client"),) in kubelet.callers[0]
    finally:
        kubelet.close()


def test_kubectl_speaks_the_pinned_release(control_plane: Cluster) -> None:
    """Client and server report the release that the Go module pins, so none is a stray binary."""
    versions = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    assert versions["clientVersion"]["gitVersion"] == control_plane.info.version
    assert versions["serverVersion"]["gitVersion"] == control_plane.info.version


def test_the_python_client_is_the_administrator(control_plane: Cluster) -> None:
    """`admin_api` gives a client with the administrator's rights."""
    from kubernetes.client import CoreV1Api

    with control_plane.admin_api() as api:
        names = {item.metadata.name for item in CoreV1Api(api).list_namespace().items}
    assert {"default", "kube-system"} <= names
