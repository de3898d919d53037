"""What the node agent refuses, and what it accepts without enforcing.

Pure: a pod's JSON in, sentences out. A pod that asks for what cannot be done here must fail with
the field's name; one that asks for what makes no difference to its result runs, and says so in the
annotation `NOT_ENFORCED`.
"""

from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]

NOT_ENFORCED = "devcluster.daybreak.dev/not-enforced"

VOLUME_TYPES = frozenset(
    {
        "emptyDir",
        "configMap",
        "secret",
        "projected",
        "downwardAPI",
        "persistentVolumeClaim",
        "hostPath",
    }
)
_PROJECTED_TYPES = frozenset({"serviceAccountToken", "configMap", "secret", "downwardAPI"})
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_PROBE_ACTIONS = ("httpGet", "tcpSocket", "exec")
_POD_FLAGS = ("hostPID", "hostIPC", "shareProcessNamespace")


def containers(pod: Json) -> Iterator[tuple[str, Json]]:
    """Each container with the name of its field, init containers first."""
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(pod["spec"].get(kind) or ()):
            yield f"spec.{kind}[{index}]", container


def is_sidecar(container: Json) -> bool:
    """An init container that keeps running beside the pod's containers."""
    return bool(container.get("restartPolicy") == "Always")


def refusals(pod: Json) -> list[str]:
    """One sentence for each thing that the agent cannot do; empty where the pod can run."""
    spec = pod["spec"]
    found = [f"spec.{flag}: true" for flag in _POD_FLAGS if spec.get(flag)]
    if spec.get("ephemeralContainers"):
        found.append("spec.ephemeralContainers")
    if (spec.get("os") or {}).get("name", "linux") != "linux":
        found.append(f"spec.os.name: {spec['os']['name']}")
    if spec.get("runtimeClassName"):
        found.append(f"spec.runtimeClassName: {spec['runtimeClassName']}")
    if spec.get("resourceClaims"):
        found.append("spec.resourceClaims")
    for index, volume in enumerate(spec.get("volumes") or ()):
        found += _volume_refusals(f"spec.volumes[{index}]", volume)
    for where, container in containers(pod):
        found += _container_refusals(where, container)
    return found


def _volume_refusals(where: str, volume: Json) -> Iterator[str]:
    for kind in volume.keys() - {"name"} - VOLUME_TYPES:
        yield f"{where}.{kind} (volume {volume['name']}): volumes of this type"
    if "projected" in volume:
        for index, source in enumerate(volume["projected"].get("sources") or ()):
            for kind in source.keys() - _PROJECTED_TYPES:
                yield f"{where}.projected.sources[{index}].{kind}: sources of this type"
    if volume.get("emptyDir", {}).get("medium", "") not in ("", "Memory"):
        yield f"{where}.emptyDir.medium: {volume['emptyDir']['medium']}"


def _container_refusals(where: str, container: Json) -> Iterator[str]:
    if not container.get("command") and not container.get("args"):
        yield (
            f"{where}.command: missing; the image {container.get('image', '')!r} is a name only, "
            "so it has no entry point"
        )
    security = container.get("securityContext") or {}
    if security.get("privileged"):
        yield f"{where}.securityContext.privileged: true"
    if (security.get("capabilities") or {}).get("add"):
        added = ", ".join(security["capabilities"]["add"])
        yield f"{where}.securityContext.capabilities.add: {added}"
    if container.get("volumeDevices"):
        yield f"{where}.volumeDevices"
    if where.startswith("spec.containers") and container.get("restartPolicy"):
        yield f"{where}.restartPolicy: a policy of a single container"
    for mount in container.get("volumeMounts") or ():
        if mount.get("mountPropagation", "None") != "None":
            yield f"{where}.volumeMounts ({mount['name']}): mountPropagation"
    yield from _lifecycle_refusals(where, container.get("lifecycle") or {})
    for probe in _PROBES:
        actions = [name for name in _PROBE_ACTIONS if name in (container.get(probe) or {})]
        if probe in container and not actions:
            yield f"{where}.{probe}: other probes than {', '.join(_PROBE_ACTIONS)}"
    for index, variable in enumerate(container.get("env") or ()):
        for kind in (variable.get("valueFrom") or {}).keys() - {
            "fieldRef",
            "configMapKeyRef",
            "secretKeyRef",
        }:
            yield f"{where}.env[{index}].valueFrom.{kind} ({variable['name']})"


def _lifecycle_refusals(where: str, lifecycle: Json) -> Iterator[str]:
    if "postStart" in lifecycle:
        yield f"{where}.lifecycle.postStart"
    if lifecycle.get("stopSignal"):
        yield f"{where}.lifecycle.stopSignal"
    for kind in (lifecycle.get("preStop") or {}).keys() - {"exec", "sleep"}:
        yield f"{where}.lifecycle.preStop.{kind}"


def not_enforced(pod: Json) -> list[str]:
    """What this pod asks for that is accepted and has no effect here, sorted."""
    spec = pod["spec"]
    found = {"image", "NetworkPolicy"}
    pod_security = spec.get("securityContext") or {}
    checks: dict[str, Callable[[Json], Any]] = {
        "resources.limits": lambda c: (c.get("resources") or {}).get("limits"),
        "securityContext.seccompProfile": lambda c: (
            pod_security.get("seccompProfile")
            or (c.get("securityContext") or {}).get("seccompProfile")
        ),
        "ports.hostPort": lambda c: any("hostPort" in port for port in c.get("ports") or ()),
        "imagePullPolicy: Always": lambda c: c.get("imagePullPolicy") == "Always",
    }
    for _, container in containers(pod):
        found |= {name for name, asks in checks.items() if asks(container)}
    for name in ("fsGroup", "supplementalGroups", "sysctls", "seLinuxOptions", "appArmorProfile"):
        if pod_security.get(name):
            found.add(f"securityContext.{name}")
    for name in ("dnsConfig", "imagePullSecrets"):
        if spec.get(name):
            found.add(name)
    for volume in spec.get("volumes") or ():
        empty = volume.get("emptyDir") or {}
        if empty.get("medium") == "Memory" and not in_memory(pod, volume):
            found.add(f"volume {volume['name']}: medium Memory (kept in a folder)")
        elif empty.get("sizeLimit") and not in_memory(pod, volume):
            found.add(f"volume {volume['name']}: sizeLimit")
    return sorted(found)


def in_memory(pod: Json, volume: Json) -> bool:
    """Whether an emptyDir of medium Memory can be a memory file system of its one container.

    Shared between containers, or to survive a container's restart, it has to be a folder.
    """
    if (volume.get("emptyDir") or {}).get("medium") != "Memory":
        return False
    mounts = [
        mount
        for _, container in containers(pod)
        for mount in container.get("volumeMounts") or ()
        if mount["name"] == volume["name"]
    ]
    once = len(mounts) == 1 and not (mounts[0].get("subPath") or mounts[0].get("subPathExpr"))
    return once and pod["spec"].get("restartPolicy") == "Never"
