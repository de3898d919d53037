"""What is told of a run for which nothing can be decided: this operator cannot read it, or its
looks fail one after the other.

An older operator may meet a newer one's run, and what fails may be the cluster's: so nothing of the
run is replaced, and it does not fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientError
from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.api.run import MANAGER
from daybreak_operator.api.status import TERMINAL, TrainingRunStatus
from daybreak_operator.cluster import Cluster
from daybreak_operator.draft import EventNote
from daybreak_operator.text import plain
from daybreak_trainer.contract import rfc3339

_CONDITION = "Degraded"
_EVENT_SECONDS = 5.0
"""For the Event, which comes first: who dies after it tells the rest again."""


@dataclass(frozen=True)
class Trouble:
    reason: str
    remedy: str


INVALID = Trouble(
    "InvalidRun",
    "nothing is done for this run until that is corrected, or read by another version",
)
FAILING = Trouble(
    "ReconcileFailed",
    "nothing is done for this run until that is over; it is tried again and again",
)


@dataclass(frozen=True)
class _Named:
    """As much of a run as names it."""

    namespace: str
    name: str
    uid: str


async def report(
    cluster: Cluster, body: Mapping[str, Any], trouble: Trouble, problem: str
) -> Mapping[str, Any] | None:
    """The condition `Degraded`, with an Event where its reason is a new one; the next look that
    succeeds takes the condition back. A run that is over is left as it ended: its status changes no
    more; and one of another controller's is left alone. Returns the run as it was written, None
    where there was nothing to write.

    Raises:
        ConflictError: the run changed meanwhile.
    """
    metadata, status = body["metadata"], body.get("status") or {}
    theirs = (body.get("spec") or {}).get("managedBy") not in (None, MANAGER)
    if theirs or status.get("phase") in TERMINAL:
        return None
    told = status.get("conditions") or []
    before: Mapping[str, Any] = next((c for c in told if c.get("type") == _CONDITION), {})
    now = rfc3339(datetime.now(UTC), "seconds")
    held = before.get("status") == "True"
    condition = {
        "type": _CONDITION,
        "status": "True",
        "reason": trouble.reason,
        "message": f"{plain(problem, 800)}; {trouble.remedy}",
        "lastTransitionTime": before["lastTransitionTime"] if held else now,
        "observedGeneration": metadata.get("generation", 0),
    }
    if condition == before:
        return None
    run = _Named(metadata["namespace"], metadata["name"], metadata["uid"])
    if (before.get("status"), before.get("reason")) != ("True", trouble.reason):
        note = EventNote("Warning", trouble.reason, condition["message"], status.get("attempt", 0))
        with suppress(ApiException, ClientError, OSError):  # it may be Events that are away
            async with asyncio.timeout(_EVENT_SECONDS):
                await cluster.record(run, note)
    others = [c for c in told if c.get("type") != _CONDITION]
    return await cluster.patch_status(
        run,
        metadata["resourceVersion"],
        {"phase": status.get("phase", "Pending"), "conditions": [*others, condition]},
    )


def kept(before: TrainingRunStatus, after: TrainingRunStatus) -> TrainingRunStatus:
    """The next status of a run whose last looks have failed: that it was told so stays until one
    succeeds, for a look may fail after its status is written."""
    told = [c for c in before.conditions if (c.type, c.reason) == (_CONDITION, FAILING.reason)]
    if not told or after.phase in TERMINAL:
        return after
    others = [c for c in after.conditions if c.type != _CONDITION]
    return after.model_copy(update={"conditions": (*others, *told)})
