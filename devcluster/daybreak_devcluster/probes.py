"""Asks the control plane's servers whether they are ready.

A few GET requests with a client certificate: the Kubernetes client library takes longer to import
than the whole control plane takes to answer them.
"""

import http.client
import json
import ssl
from pathlib import Path

from daybreak_devcluster.components import HOST, Ports
from daybreak_devcluster.layout import Layout
from daybreak_devcluster.nodespec import NodeSpec

_TIMEOUT_SECONDS = 2.0


class Probes:
    """Each method answers whether one thing is ready now; being unreachable is just "no"."""

    def __init__(self, layout: Layout, ports: Ports) -> None:
        self._ports = ports
        self._cluster = _context(layout.pki, "ca", "admin")
        self._etcd = _context(layout.pki, "etcd-ca", "etcd-client")

    def etcd(self) -> bool:
        """etcd serves reads and has a leader."""
        return self._get(self._etcd, self._ports.etcd_client, "/readyz")[0] == 200

    def apiserver(self) -> bool:
        """Every start-up hook of the API server has run, RBAC bootstrap included."""
        return self._get(self._cluster, self._ports.apiserver, "/readyz")[0] == 200

    def controller_manager(self) -> bool:
        """Its health check passes."""
        return self._get(self._cluster, self._ports.controller_manager, "/healthz")[0] == 200

    def scheduler(self) -> bool:
        """Its caches are synced, so that it schedules pods."""
        return self._get(self._cluster, self._ports.scheduler, "/readyz")[0] == 200

    def default_namespace(self) -> bool:
        """Pods can be created in `default`: its ServiceAccount and root certificate exist."""
        base = "/api/v1/namespaces/default"
        wanted = [f"{base}/serviceaccounts/default", f"{base}/configmaps/kube-root-ca.crt"]
        return all(
            self._get(self._cluster, self._ports.apiserver, path)[0] == 200 for path in wanted
        )

    def node(self, node: NodeSpec) -> bool:
        """The node is registered and its Ready condition is true."""
        path = f"/api/v1/nodes/{node.name}"
        status, body = self._get(self._cluster, self._ports.apiserver, path)
        if status != 200:
            return False
        conditions = json.loads(body).get("status", {}).get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def _get(self, context: ssl.SSLContext, port: int, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 where nothing answered."""
        connection = http.client.HTTPSConnection(
            HOST, port, timeout=_TIMEOUT_SECONDS, context=context
        )
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def _context(pki: Path, authority: str, client: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki / f"{authority}.crt")
    context.load_cert_chain(pki / f"{client}.crt", pki / f"{client}.key")
    return context
