"""How soon an event wants a look. Pure.

Four pods that start make sixteen events and more, and each write of ours comes back as one. What an
attempt's end may follow from, or a change of what is wanted, is looked at now; what only shows that
things go on, together with what comes shortly after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daybreak_operator.cache import Body
from daybreak_operator.observation import true_conditions

SOON_SECONDS = 0.5
_ENDS = frozenset({"Failed", "FailureTarget", "Complete", "SuccessCriteriaMet", "DisruptionTarget"})
"""Conditions of Jobs and pods."""


def run_pause(known: Body | None, event: str | None, body: Body) -> float | None:
    """Seconds until the look that a run's event wants, by what was known of it; None: it tells
    nothing new, such as a write of our own."""
    if known is None or event == "DELETED":
        return 0.0
    before, after = known["metadata"], body["metadata"]
    if before["uid"] == after["uid"] and before["resourceVersion"] == after["resourceVersion"]:
        return None
    if _wanted(before) != _wanted(after):
        return 0.0
    return SOON_SECONDS


def child_pause(event: str | None, body: Body) -> float:
    """The same for a Job's or a pod's event."""
    status = body.get("status") or {}
    containers = status.get("containerStatuses") or []
    ending = (
        event == "DELETED"
        or "deletionTimestamp" in body["metadata"]
        or status.get("phase") in ("Succeeded", "Failed")
        or bool(status.get("completedIndexes"))
        or any("terminated" in (container.get("state") or {}) for container in containers)
        or not _ENDS.isdisjoint(true_conditions(status))
    )
    return 0.0 if ending else SOON_SECONDS


def _wanted(metadata: Mapping[str, Any]) -> tuple[Any, ...]:
    """The API server counts changes of the spec in `generation`."""
    return tuple(metadata.get(field) for field in ("uid", "generation", "deletionTimestamp"))
