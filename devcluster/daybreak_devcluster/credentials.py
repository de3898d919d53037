"""Makes every certificate, key and kubeconfig of one cluster.

Who is who: the administrator and the node agents are in `system:masters`; controller manager and
scheduler have the identities that the API server's bootstrap policy gives roles to.
"""

from daybreak_devcluster.components import HOST, Ports
from daybreak_devcluster.kubeconfig import write_kubeconfig
from daybreak_devcluster.layout import Layout
from daybreak_devcluster.pki import Authority, signing_key, write_private

_MASTERS = ("system:masters",)
_API_NAMES = (
    HOST,
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


def write_credentials(layout: Layout, ports: Ports) -> None:
    """Fill `layout.pki` and write the administrator's kubeconfig."""
    pki = layout.pki
    pki.mkdir(mode=0o700)

    etcd_authority = Authority("daybreak-devcluster-etcd")
    (pki / "etcd-ca.crt").write_bytes(etcd_authority.certificate)
    etcd_authority.server("etcd", [HOST]).write(pki, "etcd")
    etcd_authority.client("kube-apiserver").write(pki, "etcd-client")

    authority = Authority("daybreak-devcluster")
    (pki / "ca.crt").write_bytes(authority.certificate)
    authority.server("kube-apiserver", _API_NAMES).write(pki, "apiserver")
    authority.server("kube-controller-manager", [HOST]).write(pki, "controller-manager")
    authority.server("kube-scheduler", [HOST]).write(pki, "scheduler")
    authority.client("kube-apiserver-kubelet-client", _MASTERS).write(pki, "kubelet-client")

    private, public = signing_key()
    write_private(pki / "service-account.key", private)
    (pki / "service-account.pub").write_bytes(public)

    server = f"https://{HOST}:{ports.apiserver}"
    for name in ("controller-manager", "scheduler"):
        user = f"system:kube-{name}"
        path = pki / f"{name}.kubeconfig"
        write_kubeconfig(path, server, authority.certificate, user, authority.client(user))
    agent = authority.client("daybreak-agent", _MASTERS)
    write_kubeconfig(
        pki / "agent.kubeconfig", server, authority.certificate, "daybreak-agent", agent
    )
    admin = authority.client("daybreak-admin", _MASTERS)
    admin.write(pki, "admin")
    write_kubeconfig(layout.kubeconfig, server, authority.certificate, "daybreak-admin", admin)
