"""What a history came to: what it is about is only tested if it happens often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from simulated_history import History, Neighbour

PREPARED = {
    "Preparing",
    "prepared",
    "prepared by a second Job",
    "a pod that prepares is replaced",
    "PreparationFailed",
    "suspended while it prepares",
    "preparation refused",
}
REFUSED = {
    "Job refused",
    "ConfigMap refused",
    "Service refused",
    "NetworkPolicy refused",
    "Pod refused",
    "refused, then complete",
}
EXPIRED = {"Complete and expired", "Failed and expired"}
SEVERAL = {
    "train at once",
    "wait for another run's nodes",
    *(f"complete beside {kind}" for kind in get_args(Neighbour)),
}
CORRECTED = {"made anew for what was corrected"}
REACHABLE = PREPARED | REFUSED | EXPIRED | SEVERAL | CORRECTED


def reached(history: History) -> set[str]:
    """Of the above, what happened."""
    cluster = history.cluster
    facts = {
        "train at once": cluster.trained_at_once,
        "wait for another run's nodes": cluster.crowded,
        "Pod refused": cluster.pods_refused,
    }
    found = {what for what, happened in facts.items() if happened}
    for uid, status in history.api.statuses:
        found.update(_in_status(uid, status, history))
    preparing = [job for job in cluster.made if job.prepares]
    owners = [job.owner_uid for job in preparing]
    if len(set(owners)) < len(owners):
        found.add("prepared by a second Job")
    if any(job.retries and job.failed is None for job in preparing):
        found.add("a pod that prepares is replaced")
    for _, what in history.api.refused:
        kind, name = what.split()
        found.add(f"{kind} refused")
        if name.endswith("-prepare"):
            found.add("preparation refused")
    return found


def _in_status(uid: str, status: dict[str, Any], history: History) -> Iterator[str]:
    phase, preparation = status["phase"], status.get("preparation", {}).get("state")
    if phase == "Preparing":
        yield phase
    if preparation == "Done":
        yield "prepared"
    if phase == "Suspended" and preparation == "Running":
        yield "suspended while it prepares"
    if phase in ("Complete", "Failed") and uid in history.api.expired:
        yield f"{phase} and expired"
    told = {c["type"]: c for c in status["conditions"]}
    if told["Running"]["reason"] == "WorkersChanged":
        yield "made anew for what was corrected"
    if told["Failed"]["reason"] == "PreparationFailed":
        yield "PreparationFailed"
    if phase == "Complete":
        if any(owner == uid for owner, _ in history.api.refused):
            yield "refused, then complete"
        yield from (f"complete beside {kind}" for kind in history.kinds.values())
