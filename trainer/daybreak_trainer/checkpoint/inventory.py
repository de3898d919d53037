"""What a storage holds: every checkpoint of every run, finished or not. Needs no torch."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from daybreak_trainer.checkpoint import retention
from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import COMMIT, Commit, CommitPoint, run_folder
from daybreak_trainer.checkpoint.lineage import read_commit
from daybreak_trainer.checkpoint.storage import Storage

_RUN = re.compile(r"run-(?P<uid>.+)")
_ATTEMPT = re.compile(r"attempt-(?P<number>\d+)")
_STEP = re.compile(r"step-(?P<number>\d+)")


@dataclass(frozen=True)
class Place:
    """A storage, or a run, an attempt or a checkpoint in it."""

    root: str
    uid: str | None = None
    attempt: int | None = None
    step: int | None = None

    @classmethod
    def parse(cls, url: str) -> Place:
        """From the URL of any of them, as `kubectl` shows it."""
        root, attempt, step = url.rstrip("/"), None, None
        if found := _STEP.fullmatch(posixpath.basename(root)):
            root, step = posixpath.dirname(root), int(found["number"])
        if found := _ATTEMPT.fullmatch(posixpath.basename(root)):
            root, attempt = posixpath.dirname(root), int(found["number"])
        if found := _RUN.fullmatch(posixpath.basename(root)):
            return cls(posixpath.dirname(root), found["uid"], attempt, step)
        return cls(url.rstrip("/"))

    def has(self, point: CommitPoint) -> bool:
        return self.attempt in (None, point.attempt) and self.step in (None, point.step)


@dataclass(frozen=True)
class Entry:
    """One checkpoint."""

    uid: str
    point: CommitPoint
    state: Literal["committed", "partial", "unreadable"]
    bytes: int
    commit: Commit | None = None
    is_tip: bool = False
    """A new attempt of the run would go on from it, if its files are whole."""
    problem: str = ""

    def storage(self, root: Storage) -> Storage:
        return root.child(f"{run_folder(self.uid)}/{self.point.folder}")


def runs(root: Storage, place: Place) -> list[str]:
    """UIDs of the runs that have checkpoints there."""
    found = [match["uid"] for name in root.folders() if (match := _RUN.fullmatch(name))]
    return [uid for uid in found if place.uid in (None, uid)]


def entries(root: Storage, place: Place) -> Iterator[Entry]:
    """By run, attempt and step. The run may be training: what it removes meanwhile is left out.

    Raises:
        StorageError: the store cannot be read.
    """
    for uid in runs(root, place):
        run = root.child(run_folder(uid))
        kept = retention.plan(run, uid, retention.FEWEST).keep
        tip = kept[0] if kept else None
        for point in filter(place.has, retention.folders(run)):
            if (entry := _entry(run, uid, point, is_tip=point == tip)) is not None:
                yield entry


def _entry(run: Storage, uid: str, point: CommitPoint, is_tip: bool) -> Entry | None:
    found = _commit(run, point, uid)
    sizes = {} if isinstance(found, Commit) else run.child(point.folder).sizes()
    if COMMIT in sizes:  # it may have been written after it was looked for
        found = _commit(run, point, uid)
    if isinstance(found, Commit):
        return Entry(uid, point, "committed", found.size, found, is_tip)
    if not sizes:
        return None
    state: Literal["unreadable", "partial"] = "unreadable" if COMMIT in sizes else "partial"
    return Entry(uid, point, state, sum(sizes.values()), problem=found)


def _commit(run: Storage, point: CommitPoint, uid: str) -> Commit | str:
    try:
        return read_commit(run, point, uid)
    except ChangedError as error:
        return str(error)
