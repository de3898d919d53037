"""Which checkpoints may go, and their removal.

Only what a resume would accept counts: commits of this run's lineage that can be read. The newest
`keep_last` of them stay, never fewer than two. What is older goes. Of what is newer only folders
that were never finished go, and only where nobody can still be writing them: they come before the
newest commit, and a worker has one save in flight at most. A `COMMIT.json` that cannot be read, or
is another run's, is left for a person to look at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import (
    COMMIT,
    Commit,
    CommitPoint,
    attempt_folder,
)
from daybreak_trainer.checkpoint.lineage import numbered, read_commit, walk
from daybreak_trainer.checkpoint.storage import Storage

FEWEST = 2
"""One may turn out to be damaged."""


@dataclass(frozen=True)
class Plan:
    keep: tuple[CommitPoint, ...] = ()
    """The commits that count, newest first."""
    remove: tuple[CommitPoint, ...] = ()
    """Oldest first."""


def plan(run: Storage, uid: str, keep_last: int, tip: CommitPoint | None = None) -> Plan:
    """What to keep and what to remove, up to the commit `tip`; None for the lineage's newest.

    Whatever comes after `tip` is left alone: it may be in flight.
    """
    before = tip.attempt + 1 if tip else _FOREVER
    wanted = max(keep_last, FEWEST)
    lineage = (
        point
        for point in walk(run, before, uid, [])
        if (tip is None or point.order <= tip.order) and _is_commit(run, point, uid)
    )
    keep = tuple(islice(lineage, wanted))
    if not keep:
        return Plan()
    oldest = keep[-1].order if len(keep) == wanted else (0, 0)
    remove = [
        point
        for point in folders(run)
        if point.order < keep[0].order
        and (_is_partial(run, point) or (point.order < oldest and _is_commit(run, point, uid)))
    ]
    return Plan(keep, tuple(remove))


def remove(run: Storage, point: CommitPoint) -> None:
    """`COMMIT.json` goes first, so a half-removed checkpoint is none."""
    run.remove(f"{point.folder}/{COMMIT}")
    run.remove(point.folder)


_FOREVER = 1 << 62


def folders(run: Storage) -> Iterator[CommitPoint]:
    """Every checkpoint's folder, finished or not, oldest attempt and step first."""
    for attempt in numbered(run.folders(), "attempt-"):
        for step in numbered(run.folders(attempt_folder(attempt)), "step-"):
            yield CommitPoint(attempt=attempt, step=step)


def _is_commit(run: Storage, point: CommitPoint, uid: str) -> bool:
    try:
        return isinstance(read_commit(run, point, uid), Commit)
    except ChangedError:
        return False


def _is_partial(run: Storage, point: CommitPoint) -> bool:
    return not run.exists(f"{point.folder}/{COMMIT}")
