"""The command lines of the control plane's programs.

Pure: paths and ports in, arguments out. Every flag that differs from the default has its reason
beside it. All listeners are on 127.0.0.1.
"""

from dataclasses import dataclass
from pathlib import Path

from daybreak_devcluster.layout import Layout

HOST = "127.0.0.1"
# Pods get addresses in 127.0.0.0/8, which these controllers refuse and would retry for ever.
_SWITCHED_OFF = (
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
)


@dataclass(frozen=True)
class Ports:
    """One free port per listener."""

    etcd_client: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


def etcd(binaries: Path, layout: Layout, ports: Ports) -> list[str]:
    """etcd's command: one member, TLS with client certificates of etcd's own authority."""
    pki = layout.pki
    client, peer = f"https://{HOST}:{ports.etcd_client}", f"https://{HOST}:{ports.etcd_peer}"
    return [
        str(binaries / "etcd"),
        "--name=devcluster",
        f"--data-dir={layout.etcd}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=devcluster={peer}",
        # The data dies with the cluster, so a power cut costs nothing that fsync could save.
        "--unsafe-no-fsync",
        "--client-cert-auth",
        f"--trusted-ca-file={pki / 'etcd-ca.crt'}",
        f"--cert-file={pki / 'etcd.crt'}",
        f"--key-file={pki / 'etcd.key'}",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={pki / 'etcd-ca.crt'}",
        f"--peer-cert-file={pki / 'etcd.crt'}",
        f"--peer-key-file={pki / 'etcd.key'}",
        "--log-level=warn",
    ]


def apiserver(binaries: Path, layout: Layout, ports: Ports) -> list[str]:
    """The API server's command: client certificates, RBAC, Pod Security, bound tokens."""
    pki = layout.pki
    return [
        str(binaries / "kube-apiserver"),
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={ports.apiserver}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--cert-dir={pki}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--etcd-servers=https://{HOST}:{ports.etcd_client}",
        f"--etcd-cafile={pki / 'etcd-ca.crt'}",
        f"--etcd-certfile={pki / 'etcd-client.crt'}",
        f"--etcd-keyfile={pki / 'etcd-client.key'}",
        "--authorization-mode=Node,RBAC",
        # As on real clusters: Pod Security decides about privileged pods, not a blanket refusal.
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # The `kubernetes` Service would get a loopback endpoint, which validation refuses.
        "--endpoint-reconciler-type=none",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        # With the grace period below, a lost node's pods are evicted within a minute, not six: that
        # is what a fault test waits for.
        "--default-not-ready-toleration-seconds=30",
        "--default-unreachable-toleration-seconds=30",
    ]


def controller_manager(binaries: Path, layout: Layout, ports: Ports) -> list[str]:
    """The controller manager's command: all default controllers but those of endpoints."""
    pki = layout.pki
    return [
        str(binaries / "kube-controller-manager"),
        f"--bind-address={HOST}",
        f"--secure-port={ports.controller_manager}",
        f"--tls-cert-file={pki / 'controller-manager.crt'}",
        f"--tls-private-key-file={pki / 'controller-manager.key'}",
        f"--kubeconfig={pki / 'controller-manager.kubeconfig'}",
        "--controllers=" + ",".join(["*", *(f"-{name}" for name in _SWITCHED_OFF)]),
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--service-account-private-key-file={pki / 'service-account.key'}",
        "--use-service-account-credentials",
        # Alone on its cluster: waiting for a lease would only delay the start.
        "--leader-elect=false",
        "--node-monitor-grace-period=20s",
        # The defaults (20 and 30) make a burst of objects in a test wait for the client's limiter.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def scheduler(binaries: Path, layout: Layout, ports: Ports) -> list[str]:
    """The scheduler's command."""
    pki = layout.pki
    return [
        str(binaries / "kube-scheduler"),
        f"--bind-address={HOST}",
        f"--secure-port={ports.scheduler}",
        f"--tls-cert-file={pki / 'scheduler.crt'}",
        f"--tls-private-key-file={pki / 'scheduler.key'}",
        f"--kubeconfig={pki / 'scheduler.kubeconfig'}",
        "--leader-elect=false",
    ]
