"""What the cluster's nodes have left for a run, where the operator may read them.

The permission is optional (chart: `nodes.read`). Without it nothing here is known, and a run that
went on smaller tries its full size at its next restart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from daybreak_operator.api.quantity import quantity
from daybreak_operator.observation import true_conditions

Json = Mapping[str, Any]
_BLOCKING = ("NoSchedule", "NoExecute")
_CLAIM_SECONDS = 300.0
"""For the last commit of the old attempt and the start of the new one's pods."""


@dataclass(frozen=True)
class Capacity:
    lost: frozenset[str]
    """Nodes that hold pods of the run and do not answer, or do not exist any more."""
    free: tuple[str, ...]
    """Ready nodes that match a worker of the run and have room for one more."""


class Inventory:
    """What is left on each node; one for all runs that ask within a few seconds. Of the pods, which
    may be many thousands, nothing is kept but what they take."""

    def __init__(self, nodes: Iterable[Json]) -> None:
        ready = {node["metadata"]["name"]: node for node in nodes if _ready(node)}
        self._nodes = {
            name: {"metadata": node["metadata"], "spec": node.get("spec") or {}}
            for name, node in ready.items()
        }
        self._left = {
            name: {
                resource: quantity(value)
                for resource, value in ((node.get("status") or {}).get("allocatable") or {}).items()
            }
            for name, node in ready.items()
        }

    def take(self, pods: Iterable[Json]) -> None:
        """Counts pods of the cluster that have a node."""
        for pod in pods:
            left = self._left.get(pod["spec"]["nodeName"])
            if left is None or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            for name, value in _requests(pod["spec"]).items():
                left[name] = left.get(name, Decimal()) - value

    def capacity(
        self, worker: Json, mine: Collection[str], claimed: Collection[str] = ()
    ) -> Capacity:
        """For a run: `worker` is a pod as its Job makes it, `mine` the nodes on which it has
        pods, `claimed` those that others are about to take."""
        wanted = _requests(worker["spec"])
        free = tuple(
            name
            for name, node in self._nodes.items()
            if name not in claimed
            and _matches(node, worker["spec"])
            and _has_room(self._left[name], wanted)
        )
        return Capacity(frozenset(mine) - self._nodes.keys(), free)


class Claims:
    """Nodes that runs are about to go on with. Until the next attempt of a run that stops to grow
    has its pods, its new nodes look free, and its old ones too: others must not stop for them."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, frozenset[str]]] = {}

    def claim(self, uid: str, nodes: Iterable[str], now: float) -> None:
        """For the run of that UID; `now` is of a monotonic clock, in seconds."""
        kept = {owner: claim for owner, claim in self._until.items() if claim[0] > now}
        self._until = kept | {uid: (now + _CLAIM_SECONDS, frozenset(nodes))}

    def of_others(self, uid: str, now: float) -> frozenset[str]:
        """What all other runs have claimed."""
        claims = self._until.items()
        held = (nodes for owner, (until, nodes) in claims if owner != uid and until > now)
        return frozenset().union(*held)


def _ready(node: Json) -> bool:
    return "Ready" in true_conditions(node.get("status") or {})


def _matches(node: Json, spec: Json) -> bool:
    """The node selector, taints, and required node affinity by labels and name; what else a
    scheduler looks at, it will find out."""
    labels = node["metadata"].get("labels") or {}
    if (node.get("spec") or {}).get("unschedulable"):
        return False
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    for taint in (node.get("spec") or {}).get("taints") or []:
        tolerated = any(_tolerates(t, taint) for t in spec.get("tolerations") or [])
        if taint.get("effect") in _BLOCKING and not tolerated:
            return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = required.get("nodeSelectorTerms")
    fields = {"metadata.name": node["metadata"]["name"]}
    return not terms or any(
        all(_expression(e, labels) for e in term.get("matchExpressions") or [])
        and all(_expression(e, fields) for e in term.get("matchFields") or [])
        for term in terms
    )


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("key") not in (None, taint["key"]):
        return False
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    exists = toleration.get("operator", "Equal") == "Exists"
    return bool(exists or toleration.get("value", "") == taint.get("value", ""))


def _expression(expression: Json, labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    values, value = expression.get("values") or [], labels.get(key)
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    if operator == "NotIn":
        return value not in values
    if operator == "In":
        return value in values
    if value is None or not value.lstrip("-").isdigit():
        return False
    return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])


def _has_room(left: Mapping[str, Decimal], wanted: Mapping[str, Decimal]) -> bool:
    return all(left.get(name, Decimal()) >= value for name, value in wanted.items())


def _requests(spec: Json) -> dict[str, Decimal]:
    """What a pod takes of its node: its containers together, or its largest init container."""
    total: dict[str, Decimal] = {"pods": Decimal(1)}
    for container in spec.get("containers") or []:
        for name, value in _of_container(container).items():
            total[name] = total.get(name, Decimal()) + value
    for container in spec.get("initContainers") or []:
        for name, value in _of_container(container).items():
            total[name] = max(total.get(name, Decimal()), value)
    return total


def _of_container(container: Json) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    # A limit without a request is one.
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(value) for name, value in wanted.items()}
