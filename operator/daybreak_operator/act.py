"""A decision becomes API calls, each of them idempotent, in the order that `decide` relies on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cache import Body
from daybreak_operator.cluster import Cluster
from daybreak_operator.decision import Decision
from daybreak_operator.draft import EventNote
from daybreak_operator.errors import ForeignObjectError, RefusedObjectError

_log = logging.getLogger(__name__)


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
    for job in decision.delete_jobs:
        await cluster.delete_job(run, job)
    for pod in decision.delete_pods:
        await cluster.delete_pod(run, pod)
    if decision.delete_run:
        _log.info("deleted: its ttlSecondsAfterFinished is over")
        await cluster.delete_run(run)


def _most_telling(troubles: Sequence[BaseException]) -> BaseException:
    """What may pass by itself first, then a name that is taken, then all refusals together: who
    puts them right wants to know of each."""
    refused = [str(trouble) for trouble in troubles if isinstance(trouble, RefusedObjectError)]
    others = [trouble for trouble in troubles if not isinstance(trouble, RefusedObjectError)]
    if not others:
        return RefusedObjectError("; ".join(refused))
    return min(others, key=lambda trouble: isinstance(trouble, ForeignObjectError))
