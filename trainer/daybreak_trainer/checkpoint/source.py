"""The commit of another run that a run begins from (`spec.checkpoint.resumeFrom`).

It is read and verified as any commit that is gone on from, and never written to or removed. What
training has come to is taken over: weights, steps, samples, the data's position and what was passed
over of it, the plan. What it cost is not: time, devices and restarts are counted anew, for the
budget is the new run's. Averages that were kept on the way stay with the run that kept them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daybreak_trainer.checkpoint import changes, lineage
from daybreak_trainer.checkpoint.inventory import Place
from daybreak_trainer.checkpoint.layout import (
    RECIPE,
    CommitPoint,
    SourceCommit,
    TrainState,
    run_folder,
)
from daybreak_trainer.checkpoint.lineage import Expected, Search
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.checkpoint.streams import Moved

FIELD = "spec.checkpoint.resumeFrom"


class ResumeFromError(Exception):
    """The commit that the run is to begin from cannot be gone on from. The message says why."""


@dataclass(frozen=True)
class Source:
    uid: str
    point: CommitPoint
    run: Storage
    """All of that run's checkpoints."""

    @classmethod
    def of(cls, url: str, own_uid: str, options: Mapping[str, Any], moved: Moved) -> Source:
        """Of a commit's URL, as `status.checkpoint.url` has it. `moved` counts what is read.

        Raises:
            ResumeFromError: it names no commit, or one of the run's own.
            StorageRefusedError: it names no store, or the options are wrong.
        """
        place = Place.parse(url)
        if place.uid is None or place.attempt is None or place.step is None:
            raise ResumeFromError(
                f"{FIELD}: {url} is no commit; give it the folder of one, as in "
                "s3://bucket/folder/run-UID/attempt-0003/step-00041000 (status.checkpoint.url of "
                "the run that is to be gone on from)"
            )
        if place.uid == own_uid:
            raise ResumeFromError(
                f"{FIELD}: {url} is a commit of this very run, which goes on from its newest by "
                "itself; leave the field out"
            )
        storage = Storage(place.root, options)
        storage.moved = moved
        point = CommitPoint(attempt=place.attempt, step=place.step)
        return cls(place.uid, point, storage.child(run_folder(place.uid)))

    @property
    def checkpoint(self) -> Storage:
        """The commit's folder."""
        return self.run.child(self.point.folder)

    def read(self, expected: Expected, skipped: list[str]) -> Search:
        """The commit as a new run goes on from it; its files are still to be verified.

        Raises:
            ResumeFromError: it is not there, was never finished or is damaged.
            ChangedError: as `lineage.find`.
            StorageError: the store cannot be read.
        """
        commit = lineage.read_commit(self.run, self.point, self.uid)
        if isinstance(commit, str):
            raise self.refused(commit if self.checkpoint.files() else "there is nothing there")
        changed = lineage.compared(self.checkpoint, commit, expected)
        commit = commit.model_copy(update={"state": self._begun(commit.state)})
        recipe = changes.document(self.checkpoint, RECIPE)
        return Search(commit, skipped, changed, recipe, is_foreign=True)

    def refused(self, problem: str) -> ResumeFromError:
        """What to raise where something is wrong with the commit."""
        return ResumeFromError(
            f"{FIELD}: cannot begin from {self.checkpoint.url}: {problem}; name another commit "
            "(`daybreak checkpoints verify` tells which are good), or leave the field out to train "
            "from the beginning"
        )

    def _begun(self, state: TrainState) -> TrainState:
        """With the accounts of a run that has used nothing yet."""
        anew = TrainState(step=state.step, samples=state.samples)
        accounts = ("training_seconds", "ledger", "device_seconds", "restarts", "rounds")
        origin = SourceCommit(url=self.checkpoint.url, uid=self.uid, point=self.point)
        return state.model_copy(
            update={name: getattr(anew, name) for name in accounts}
            | {"snapshots": (), "source": origin}
        )
