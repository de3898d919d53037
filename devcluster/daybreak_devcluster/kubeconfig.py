"""Writes kubeconfigs that carry their certificates inline.

A file that holds everything can be copied, merged or mounted without the files it came from.
"""

import base64
from pathlib import Path

import yaml

from daybreak_devcluster.pki import KeyPair, write_private


def write_kubeconfig(path: Path, server: str, authority: bytes, user: str, pair: KeyPair) -> None:
    """Write a kubeconfig (mode 0600) with one cluster, one user and one context."""
    name = "daybreak-devcluster"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server, "certificate-authority-data": _encoded(authority)},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": _encoded(pair.certificate),
                    "client-key-data": _encoded(pair.key),
                },
            }
        ],
    }
    write_private(path, yaml.safe_dump(document, sort_keys=False).encode())


def _encoded(pem: bytes) -> str:
    return base64.b64encode(pem).decode()
