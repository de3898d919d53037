"""Commits a run's state and finds the commit to go on from; a collective on every rank.

A commit is real when its `COMMIT.json` is: it is written last, by rank 0, after every rank's files
are in the store with the size that was hashed. Until then the old commit stands.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch.distributed as dist

from daybreak_trainer.checkpoint import dcp, history, lineage
from daybreak_trainer.checkpoint.history import HistoryLine
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    HISTORY,
    Attempt,
    Commit,
    CommitPoint,
    FileRecord,
    attempt_folder,
    run_folder,
)
from daybreak_trainer.checkpoint.lineage import Expected, Search
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.contract import CheckpointRef
from daybreak_trainer.parallel.process_group import Rank


@dataclass(frozen=True)
class Point:
    """Where training stands, apart from tensors."""

    step: int
    samples: int
    training_seconds: float


class Checkpointer:
    def __init__(
        self,
        storage: Storage,
        expected: Expected,
        attempt: int,
        keep_last: int,
        rank: Rank,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._run = storage.child(run_folder(expected.uid))
        self._expected = expected
        self._attempt = attempt
        self._keep_last = keep_last
        self._rank = rank
        self._group = group
        self._parent: CommitPoint | None = None
        self.latest: Commit | None = None
        """The newest commit of the lineage, resumed from or written here."""

    def find(self) -> Search:
        """The commit to resume from; equal on every rank. Every rank reads a part of the files."""
        return lineage.find(self._run, self._attempt + 1, self._expected, self._damage)

    def _damage(self, checkpoint: Storage, commit: Commit) -> str | None:
        mine = sorted(commit.files)[self._rank.rank :: self._rank.world]
        problem = lineage.damaged_files(checkpoint, commit, mine)
        problems: list[str | None] = [None] * self._rank.world
        dist.all_gather_object(problems, problem, group=self._group)
        return next((p for p in problems if p), None)

    def begin(self, search: Search) -> None:
        """Writes down where this attempt starts from, before it commits anything."""
        self.latest = search.commit
        self._parent = search.commit.point if search.commit else None
        here = f"{attempt_folder(self._attempt)}/{ATTEMPT}"
        # An attempt whose pods start a second time keeps the origin it first wrote down.
        if self._rank.is_first and not self._run.exists(here):
            record = Attempt(uid=self._expected.uid, attempt=self._attempt, parent=self._parent)
            self._run.write(here, record.to_json().encode())

    def restore(self, commit: Commit, state: dict[str, Any]) -> list[HistoryLine]:
        """Fills `state` from a commit that `find` has verified; returns its journal."""
        checkpoint = self._run.child(commit.point.folder)
        dcp.load(state, checkpoint, self._group)
        return history.read(checkpoint)

    def commit(self, point: Point, state: dict[str, Any], journal: list[HistoryLine]) -> Commit:
        """Writes and commits; returns when the commit is real on every rank.

        Raises:
            StorageError: the store lost or changed a file; the previous commit stands.
        """
        where = CommitPoint(attempt=self._attempt, step=point.step)
        checkpoint = self._run.child(where.folder)
        written = dcp.save(state, checkpoint, self._group)
        if self._rank.is_first:
            written[HISTORY] = checkpoint.write(HISTORY, history.encode(journal))
        parts: list[Any] = [None] * self._rank.world
        dist.all_gather_object(parts, written, group=self._group)
        files: dict[str, FileRecord] = {name: r for part in parts for name, r in part.items()}
        commit = Commit(
            uid=self._expected.uid,
            attempt=self._attempt,
            step=point.step,
            samples=point.samples,
            parent=self._parent,
            recipe_hash=self._expected.recipe_hash,
            dataset_fingerprint=self._expected.dataset_fingerprint,
            training_seconds=point.training_seconds,
            world=self._rank.world,
            time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            files=files,
        )
        problem = [self._publish(checkpoint, commit) if self._rank.is_first else None]
        dist.broadcast_object_list(problem, src=0, group=self._group)
        if problem[0]:
            raise StorageError(problem[0])
        self.latest, self._parent = commit, commit.point
        if self._rank.is_first:
            lineage.prune(self._run, commit, self._keep_last)
        return commit

    def _publish(self, checkpoint: Storage, commit: Commit) -> str | None:
        """Checks what the store holds and writes `COMMIT.json`; says what went wrong, if anything.

        Sizes come from the store; content is read back at resume, when it matters."""
        try:
            for name, record in commit.files.items():
                if (size := checkpoint.size(name)) != record.size:
                    return (
                        f"{checkpoint.url}/{name}: the store has {size} bytes of {record.size}; "
                        "nothing was committed"
                    )
            checkpoint.write(COMMIT, commit.to_json().encode())
        except FileNotFoundError as error:
            return f"{error}: the store has no such file; nothing was committed"
        except StorageError as error:
            return f"{error}; nothing was committed"
        return None

    @property
    def reference(self) -> CheckpointRef | None:
        """The newest commit, as progress reports it."""
        if self.latest is None:
            return None
        url = f"{self._run.url}/{self.latest.point.folder}"
        return CheckpointRef(step=self.latest.step, time=self.latest.time, url=url)


class Due:
    """Says on rank 0 when the next checkpoint is due, by time or by steps."""

    def __init__(self, every_seconds: float | None, every_steps: int | None) -> None:
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        by_time = (
            self._every_seconds is not None and time.monotonic() - self._last >= self._every_seconds
        )
        return by_time or (self._every_steps is not None and step % self._every_steps == 0)

    def committed(self) -> None:
        self._last = time.monotonic()
