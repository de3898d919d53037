"""A decision becomes API calls, each of them idempotent, in the order that `decide` relies on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kubernetes.aio.client.exceptions import ApiException

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cache import Body
from daybreak_operator.cluster import Cluster
from daybreak_operator.decision import Decision, JobRef, PodRef
from daybreak_operator.draft import EventNote
from daybreak_operator.errors import ForeignObjectError, RefusedObjectError

_log = logging.getLogger(__name__)
SURE_SECONDS = 2.0
"""For which a run is taken to be what our own write has made it."""


def stored(decision: Decision) -> dict[str, Any]:
    """The status as the API server keeps it."""
    return decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)


async def act(
    cluster: Cluster,
    run: TrainingRun,
    decision: Decision,
    written: Callable[[str, Body], None] = lambda version, body: None,
    *,
    record: Callable[[EventNote], Awaitable[None]] | None = None,
    sure_until: float = 0.0,
) -> None:
    """Events (by `record`, if that is given), then the status, then children, then Jobs, pods, and
    at last the run itself. `written` is told which version of the run got a new status, and the run
    with it. Until `sure_until` (monotonic clock) the run is what our own write has made it.

    Raises:
        ConflictError: the run changed meanwhile; nothing that depends on the status was done.
        ForeignObjectError: a child's name is taken.
        RefusedObjectError: children that cannot be there; the message names all of them.
    """
    for note in decision.events:
        await (record(note) if record is not None else cluster.record(run, note))
    before = run.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    if (after := stored(decision)) != before:
        written(run.resource_version, await cluster.write_status(run, after))
        sure_until = time.monotonic() + SURE_SECONDS
    # None of these needs another; what one of them meets is told when all have been tried.
    made = (cluster.ensure(run, body) for body in decision.ensure)
    troubles = [e for e in await asyncio.gather(*made, return_exceptions=True) if e is not None]
    if troubles:
        raise _most_telling(troubles)
    if decision.create_job is not None:
        # No status goes with it that would conflict, and our view of the run may be an old one:
        # this number's Job may have come and gone since.
        if time.monotonic() >= sure_until:
            await cluster.confirm(run)
        await cluster.ensure(run, decision.create_job)
    await _delete(cluster, run, decision)
    if decision.delete_run:
        await cluster.delete_run(run)
        _log.info("deleted: its ttlSecondsAfterFinished is over")


async def _delete(cluster: Cluster, run: TrainingRun, decision: Decision) -> None:
    """Jobs, then pods. One whose deletion is refused keeps no other."""
    refusals: list[ApiException] = []
    children: tuple[JobRef | PodRef, ...] = (*decision.delete_jobs, *decision.delete_pods)
    for child in children:
        try:
            if isinstance(child, JobRef):
                await cluster.delete_job(run, child)
            else:
                await cluster.delete_pod(run, child)
        except ApiException as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def _most_telling(troubles: Sequence[BaseException]) -> BaseException:
    """What may pass by itself first, then a name that is taken, then all refusals together: who
    puts them right wants to know of each."""
    refused = [str(trouble) for trouble in troubles if isinstance(trouble, RefusedObjectError)]
    others = [trouble for trouble in troubles if not isinstance(trouble, RefusedObjectError)]
    if not others:
        return RefusedObjectError("; ".join(refused))
    return min(others, key=lambda trouble: isinstance(trouble, ForeignObjectError))
