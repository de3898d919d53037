"""The /etc/hosts of pods: what cluster DNS would answer for headless Services.

Pure: the pods and Services of the cluster in, the text out. A pod's own name, and
`<hostname>.<service>` of its peers, appear only where cluster DNS would answer them: the Service
exists, is headless, selects the pod, and the pod is ready or the Service publishes addresses that
are not.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_DOMAIN = "svc.cluster.local"
_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hostname(pod: Json) -> str:
    """What the pod calls itself."""
    return str(pod["spec"].get("hostname") or pod["metadata"]["name"])[:63].rstrip("-.")


def hosts_file(pod: Json, pod_ip: str, pods: Iterable[Json], services: Iterable[Json]) -> str:
    """The content of one pod's /etc/hosts."""
    namespace = pod["metadata"]["namespace"]
    own = _own_names(pod)
    aliases = [
        f"{alias['ip']}\t{' '.join(alias.get('hostnames') or ())}\n"
        for alias in pod["spec"].get("hostAliases") or ()
    ]
    lines = []
    by_namespace: dict[str, list[Json]] = {}
    for other in pods:
        by_namespace.setdefault(other["metadata"]["namespace"], []).append(other)
    for service in services:
        if service["spec"].get("clusterIP") != "None" or not service["spec"].get("selector"):
            continue
        place = service["metadata"]["namespace"]
        for other in by_namespace.get(place, ()):
            if _answers(service, other):
                names = _names(service, other, short=place == namespace)
                if other["metadata"]["uid"] == pod["metadata"]["uid"]:
                    names = [name for name in names if name not in own]  # one answer a name
                lines.append(f"{other['status']['podIP']}\t{' '.join(names)}\n")
    return "".join([_LOCAL, f"{pod_ip}\t{' '.join(own)}\n", *aliases, *sorted(set(lines))])


def rewrite(path: Path, content: str) -> None:
    """Replace the content of the same file: pods have it bound and would not see another one.

    Longer content is in place before the file is cut, so names that stay are never missing.
    """
    data = content.encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.pread(descriptor, len(data) + 1, 0) != data:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _own_names(pod: Json) -> list[str]:
    name, subdomain = hostname(pod), pod["spec"].get("subdomain")
    if not subdomain:
        return [name]
    return [f"{name}.{subdomain}.{pod['metadata']['namespace']}.{_DOMAIN}", name]


def _answers(service: Json, pod: Json) -> bool:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    status = pod.get("status") or {}
    if not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    if any(labels.get(key) != value for key, value in service["spec"]["selector"].items()):
        return False
    ready = any(
        item["type"] == "Ready" and item["status"] == "True"
        for item in status.get("conditions") or ()
    )
    return ready or bool(service["spec"].get("publishNotReadyAddresses"))


def _names(service: Json, pod: Json, *, short: bool) -> list[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    heads = [name]
    if pod["spec"].get("subdomain") == name and pod["spec"].get("hostname"):
        heads.insert(0, f"{pod['spec']['hostname']}.{name}")
    names = []
    for head in heads:
        full = [f"{head}.{namespace}", f"{head}.{namespace}.svc", f"{head}.{namespace}.{_DOMAIN}"]
        names += ([head] if short else []) + full
    return names
