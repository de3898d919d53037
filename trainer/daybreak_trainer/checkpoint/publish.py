"""Writes one checkpoint and makes it real; a collective of all ranks, on a group of its own.

A commit is real when its `COMMIT.json` is: it is written last, by rank 0, after every rank's files
are in the store with the size that was hashed. Until then the old commit stands. Every step ends
with a word to all, so a rank that cannot write is heard of and no rank waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from daybreak_trainer.checkpoint import dcp, retention, verify
from daybreak_trainer.checkpoint.layout import (
    COMMIT,
    DATA,
    FORMAT,
    HISTORY,
    RECIPE,
    Commit,
    CommitPoint,
    FileRecord,
    TrainState,
)
from daybreak_trainer.checkpoint.lineage import Expected, numbered
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.checkpoint.together import FencedError, Together


class Publisher:
    def __init__(
        self,
        run: Storage,
        expected: Expected,
        attempt: int,
        together: Together,
    ) -> None:
        self._run, self._expected, self._attempt = run, expected, attempt
        self._together, self._rank = together, together.rank
        self.parent: CommitPoint | None = None

    def publish(
        self, state: TrainState, staged: Callable[[], Mapping[str, Tensor]], journal: bytes
    ) -> Commit:
        """Writes what `staged` returns; returns when the commit is real on every rank.

        Raises:
            FencedError: a newer attempt has begun.
            StorageError: a rank failed, its store stands still, or the store lost a file; the
                previous commit stands.
            RanksLostError: a rank is gone.
        """
        point = CommitPoint(attempt=self._attempt, step=state.step)
        checkpoint = self._run.child(point.folder)
        tensors = self._together.here(staged)
        self._together.run_on_first(f"begin {checkpoint.url}", lambda: self._begin(point))
        written = dcp.save(tensors, checkpoint, self._together)
        records = self._together.run(
            f"write {checkpoint.url}", lambda: self._described(checkpoint, written, journal)
        )
        parts = self._together.gathered(records)
        commit = Commit(
            format=FORMAT,
            uid=self._expected.uid,
            attempt=self._attempt,
            parent=self.parent,
            recipe_hash=self._expected.recipe_hash,
            dataset_fingerprint=self._expected.dataset_fingerprint,
            state=state,
            world=self._rank.world,
            time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            files={name: record for part in parts for name, record in part.items()},
        ).sealed()
        # Rank 0's own word counts: its clock is in the file.
        commit = self._together.run_on_first(
            f"commit {checkpoint.url}", lambda: self._committed(checkpoint, commit)
        )
        self.parent = commit.point
        return commit

    def check_fence(self) -> None:
        """Raises FencedError where a newer attempt has begun."""
        newest = max(numbered(self._run.folders(), "attempt-"), default=self._attempt)
        if newest > self._attempt:
            raise FencedError(
                f"{self._run.url}: attempt {newest} has begun; this worker is a leftover of "
                f"attempt {self._attempt} and commits nothing more"
            )

    def _begin(self, point: CommitPoint) -> None:
        self.check_fence()
        # What a killed save of the same step left must not be taken for this one's.
        retention.remove(self._run, point)

    def _described(
        self, checkpoint: Storage, written: dict[str, FileRecord], journal: bytes
    ) -> dict[str, FileRecord]:
        """What this rank wrote; rank 0 adds what is no tensor."""
        if not self._rank.is_first:
            return written
        return written | {
            HISTORY: checkpoint.write(HISTORY, journal),
            RECIPE: checkpoint.write(RECIPE, _document(self._expected.recipe)),
            DATA: checkpoint.write(DATA, _document(self._expected.data)),
        }

    def _committed(self, checkpoint: Storage, commit: Commit) -> Commit:
        """Asks the store for every file once more; content is read back at resume, when it
        matters."""
        if problems := verify.missing_or_cut(checkpoint, commit.files):
            raise StorageError(f"{problems[0]}; nothing was committed")
        self.check_fence()
        checkpoint.write(COMMIT, commit.seal())
        return commit


def _document(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()
