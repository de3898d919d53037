"""Keeps a run's state in its storage and finds the commit to go on from. Every method is called by
every rank, at the same step.

    search = checkpointer.find()             # verified; raises where recipe or data changed
    checkpointer.begin(search)
    journal = checkpointer.load(search.commit, tensors)
    ...
    checkpointer.save(state, tensors, journal)      # returns at once
    checkpointer.before_update()                    # before the optimizer changes the weights
    for outcome in checkpointer.poll(): ...         # after any step
    checkpointer.save_now(state, tensors, journal)  # the last one, and after SIGTERM
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from daybreak_trainer.checkpoint import dcp, lineage, retention, snapshots, verify
from daybreak_trainer.checkpoint.history import Journal
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    CLAIM,
    COMMIT,
    HISTORY,
    Attempt,
    Commit,
    CommitPoint,
    SnapshotRef,
    SourceCommit,
    TrainState,
    attempt_folder,
    run_folder,
)
from daybreak_trainer.checkpoint.lineage import Expected, Search
from daybreak_trainer.checkpoint.publish import Publisher
from daybreak_trainer.checkpoint.saves import Outcome, Saves
from daybreak_trainer.checkpoint.snapshots import Manifest
from daybreak_trainer.checkpoint.source import Source
from daybreak_trainer.checkpoint.staging import flattened
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.checkpoint.together import Together
from daybreak_trainer.checkpoint.versions import versions
from daybreak_trainer.contract import CheckpointRef
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.telemetry import log

_TIMEOUT_SECONDS = 600.0
"""Longer than any store's maintenance that it recovers from by itself."""
_OF_A_COLLECTIVE = 4
"""Times as long: no store is waited for in one, and a rank that stands still is the watchdog's to
find, which knows who is to blame."""


class Checkpointer:
    def __init__(
        self,
        storage: Storage,
        expected: Expected,
        attempt: int,
        keep_last: int,
        rank: Rank,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        source: Source | None = None,
    ) -> None:
        """`source`: where the run begins, if not at its recipe's beginning; `timeout_seconds`: how
        long the store may stand still under any rank before all give up. One that is slow, but
        moves, has all the time it needs.

        Makes a gloo group of its own: collectives of a background thread and of training on one
        group would meet each other's."""
        self._run = storage.child(run_folder(expected.uid))
        self._expected, self._source = expected, source
        self._attempt, self._keep_last, self._rank = attempt, keep_last, rank
        group = dist.new_group(
            backend="gloo",
            timeout=timedelta(seconds=_OF_A_COLLECTIVE * timeout_seconds),
            group_desc="checkpoint",
        )
        self._together = Together(rank, group, storage.moved, timeout_seconds)
        if rank.device.type == "cuda":  # a thread begins on device 0
            self._together.worker.submit(lambda: torch.cuda.set_device(rank.device))
        self._publisher = Publisher(self._run, expected, attempt, self._together)
        self._saves = Saves(self._publisher, self._together, self._prune)
        self._versions = versions()

    # --- Going on from a commit -----------------------------------------------------------------

    def find(self, unwanted: Callable[[Commit], str | None] = lambda _: None) -> Search:
        """The commit to resume from, its files verified; equal on every rank. Where `unwanted` says
        why, a commit is passed over.

        From now on workers of older attempts commit nothing more. Rank 0 walks the lineage, every
        rank reads a part of each candidate's files.

        Raises:
            ChangedError: the newest commit was made with another recipe or other data.
            ResumeFromError: there is none, and the one that the run is to begin from is not good.
            StorageError: the store fails or stands still.
            RanksLostError: a rank is gone.
        """
        self._saves.wait()
        mark = time.monotonic()
        search = self._search(unwanted)
        if search.commit is not None and self._rank.is_first:
            log.event(
                "checkpoint_verified",
                step=search.commit.step,
                bytes=search.commit.size,
                seconds=round(time.monotonic() - mark, 3),
                changed=search.changed,
            )
        return search

    def _search(self, unwanted: Callable[[Commit], str | None]) -> Search:
        """A collective: rank 0 names candidates, and all read each one's files."""
        walking = lineage.searching(self._run, self._attempt + 1, self._expected)
        problem: str | None = None

        def candidate() -> Commit | Search:
            try:
                return walking.send(problem)
            except StopIteration as end:
                found: Search = end.value
                return found

        looking = f"look for checkpoints in {self._run.url}"
        claim = f"{attempt_folder(self._attempt)}/{CLAIM}"
        self._together.run_on_first(f"write {claim}", lambda: self._run.write(claim, b""))
        while not isinstance(found := self._together.run_on_first(looking, candidate), Search):
            problem = unwanted(found) or self._damage(found)
        if found.commit is not None or self._source is None:
            return found
        return self._begun(self._source, found, unwanted)

    def _begun(
        self, source: Source, own: Search, unwanted: Callable[[Commit], str | None]
    ) -> Search:
        """A collective: what there is to begin from, where the run has no commit of its own."""
        reading = f"read {source.checkpoint.url}"
        found = self._together.run_on_first(
            reading, lambda: source.read(self._expected, own.skipped)
        )
        assert found.commit is not None  # else it raises
        if unwanted(found.commit):
            return own
        if problem := self._damage(found.commit):
            raise source.refused(problem)
        return found

    def _folder(self, commit: Commit) -> Storage:
        """Where a commit lies that was found."""
        if commit.uid == self._expected.uid:
            return self._run.child(commit.point.folder)
        assert self._source is not None  # nothing else is another run's
        return self._source.checkpoint

    def _damage(self, commit: Commit) -> str | None:
        """A collective: what is wrong with the first damaged file."""
        # By size, so that each rank has as many bytes to read.
        by_size = sorted(commit.files, key=lambda name: (-commit.files[name].size, name))
        mine = by_size[self._rank.rank :: self._rank.world]
        checkpoint = self._folder(commit)
        damages = self._together.run(
            f"verify {checkpoint.url}", lambda: verify.damages(checkpoint, commit.files, mine)
        )
        return next((d for part in self._together.gathered(damages) for d in part), None)

    def begin(self, search: Search) -> None:
        """Goes on from what `find` found: writes down where this attempt starts from, before it
        commits anything. After a later `find` (a roll-back) too: commits of this attempt that it
        passed over are taken back."""
        own = search.commit if not search.is_foreign else None
        self._saves.latest = own
        self._publisher.parent = own.point if own is not None else None
        source = search.commit.state.source if search.commit and search.is_foreign else None
        if source is not None and self._rank.is_first:
            log.event("begun_from_another_run", url=source.url, step=source.point.step)
        self._together.run_on_first(f"begin in {self._run.url}", lambda: self._write_origin(source))

    def _write_origin(self, source: SourceCommit | None) -> None:
        here = f"{attempt_folder(self._attempt)}/{ATTEMPT}"
        # An attempt whose ranks start a second time keeps the origin it first wrote down.
        parent = self._publisher.parent
        if not self._run.exists(here):
            record = Attempt(
                uid=self._expected.uid, attempt=self._attempt, parent=parent, source=source
            )
            self._run.write(here, record.seal())
        # What it then committed and `find` passed over would look newer than what follows now.
        start = parent.order if parent else (0, 0)
        for step in lineage.numbered(self._run.folders(attempt_folder(self._attempt)), "step-"):
            point = CommitPoint(attempt=self._attempt, step=step)
            if point.order > start:
                self._run.remove(f"{point.folder}/{COMMIT}")

    def load(self, commit: Commit, tensors: Mapping[str, Any]) -> Journal:
        """Fills the tensors of a nested state in place from a commit that `find` has verified,
        whatever number of ranks wrote it; returns its journal.

        Raises:
            ChangedError: the checkpoint has other tensors.
            StorageError: the store fails or stands still.
            RanksLostError: a rank is gone.
        """
        mark = time.monotonic()
        checkpoint = self._folder(commit)
        dcp.load(flattened(tensors), checkpoint, self._together)
        reading = f"read {checkpoint.url}/{HISTORY}"
        raw = self._together.run_on_first(reading, lambda: checkpoint.read(HISTORY))
        journal = Journal.decode(raw)
        if self._rank.is_first:
            seconds = round(time.monotonic() - mark, 3)
            log.event("checkpoint_loaded", step=commit.step, bytes=commit.size, seconds=seconds)
        return journal

    # --- Saving -----------------------------------------------------------------------------------

    def reserve(self, tensors: Mapping[str, Any]) -> None:
        """Takes the host memory that copies of `tensors` need (this rank's share of them), which a
        first save would otherwise do: pinning it takes seconds where there is much."""
        self._saves.reserve(flattened(tensors))

    def save(self, state: TrainState, tensors: Mapping[str, Any], journal: Journal) -> None:
        """Begins to save and returns; a save before it that is still in flight is waited for.

        Nothing may change the tensors until `before_update` has returned. Never raises because of
        the store: `poll` tells what became of it.
        """
        encoded = journal.encode() if self._rank.is_first else b""
        self._saves.start(self._stamped(state), flattened(tensors), encoded)

    def before_update(self) -> None:
        """Returns when the tensors may change. On a GPU nothing waits on the host."""
        self._saves.before_update()

    def keep(
        self,
        step: int,
        samples: int,
        kept: tuple[SnapshotRef, ...],
        deviations: tuple[float, ...],
        tensors: Mapping[str, Tensor],
        documents: Mapping[str, bytes],
    ) -> Future[tuple[SnapshotRef, ...]]:
        """Begins to write copies of averages that no checkpoint's removal touches, and returns. The
        result is `kept`, those before, with the new one, or without it where the store failed: one
        is lost then, and no training."""
        about = Manifest(
            uid=self._expected.uid,
            point=CommitPoint(attempt=self._attempt, step=step),
            samples=samples,
            deviations=deviations,
            recipe_hash=self._expected.recipe_hash,
            files={},
        )

        def job() -> tuple[SnapshotRef, ...]:
            try:
                new = snapshots.write(self._run, self._together, about, tensors, documents)
                longer = (*kept, new)
                self._together.run_on_first("list averages", lambda: self._list(longer))
            except Exception as error:  # noqa: BLE001 (training goes on without it)
                log.event("average_lost", level=logging.WARNING, step=step, error=str(error))
                return kept
            if self._rank.is_first:
                log.event("average_kept", step=step, samples=samples, number=len(longer))
            return longer

        return self._saves.beside(job)

    def list_kept(self, kept: tuple[SnapshotRef, ...]) -> None:
        """After `begin`: the averages that belong to the run are those of its commit."""
        self._together.run_on_first("list averages", lambda: self._list(kept))

    def _list(self, kept: tuple[SnapshotRef, ...]) -> None:
        self._publisher.check_fence()
        snapshots.write_index(self._run, self._expected.uid, kept)

    def poll(self) -> list[Outcome]:
        """What became of saves since the last call; never waits."""
        return self._saves.poll()

    def wait(self) -> list[Outcome]:
        """As `poll`, once the save in flight has ended: at the latest when the store has stood
        still for the timeout."""
        self._saves.wait()
        return self._saves.poll()

    def save_now(self, state: TrainState, tensors: Mapping[str, Any], journal: Journal) -> Commit:
        """Saves and returns when the commit is real; `poll` tells its outcome too.

        A commit of this very step that is there, or in flight, is not made again, unless an earlier
        attempt made it and journal or snapshots have grown since: an attempt that finds nothing
        left to train adds what the last step's weights were judged at. One of this attempt would
        have to be removed first, and stands as it is.

        Raises:
            StorageError: it could not be saved; the previous commit stands.
            RanksLostError: a rank is gone.
        """
        self._saves.wait()
        latest = self.latest
        # Rank 0's journal is the one that is saved, so it decides, for all.
        will_do = latest is not None and self._holds(latest, state, journal)
        if self._together.from_first(will_do if self._rank.is_first else None):
            assert latest is not None  # on every rank, as on the first
            return latest
        self.save(state, tensors, journal)
        self._saves.wait()
        outcome = self._saves.last
        assert outcome is not None  # of the save that just ended
        if outcome.commit is None:
            assert outcome.failure is not None  # one of the two
            raise outcome.failure
        return outcome.commit

    def _holds(self, commit: Commit, state: TrainState, journal: Journal) -> bool:
        """Whether the commit will do for this state."""
        if commit.step != state.step:
            return False
        if commit.attempt == self._attempt:
            return True
        journal_is_there = xxhash.xxh64(journal.encode()).hexdigest() == commit.files[HISTORY].xxh64
        return journal_is_there and commit.state.snapshots == state.snapshots

    def moved(self) -> int:
        """Changes as long as the store of any rank takes or gives bytes: a sign of progress while
        `find`, `load`, `save_now` or a wait for a save blocks (`Heartbeat.counting`)."""
        return self._together.moved

    def waits_for(self) -> str:
        """The save in flight and its place, for a message; empty where there is none."""
        if (state := self._saves.in_flight) is None:
            return ""
        point = CommitPoint(attempt=self._attempt, step=state.step)
        return f"the save of step {state.step} in {self._run.url}/{point.folder}"

    def close(self) -> None:
        """Waits until old checkpoints are removed too, or the store stands still."""
        self._saves.wait()
        self._together.settle()

    @property
    def latest(self) -> Commit | None:
        """The newest commit of the lineage that this rank knows of, resumed from or written."""
        self._saves.collect()
        return self._saves.latest

    @property
    def reference(self) -> CheckpointRef | None:
        """The newest commit, as progress reports it."""
        return None if (latest := self.latest) is None else self.reference_to(latest)

    def reference_to(self, commit: Commit) -> CheckpointRef:
        """A commit that was found or made."""
        return CheckpointRef(step=commit.step, time=commit.time, url=self._folder(commit).url)

    def _stamped(self, state: TrainState) -> TrainState:
        return state.model_copy(update={"versions": self._versions})

    def _prune(self, tip: Commit) -> None:
        """In the store's thread, after a commit. What fails is tried again after the next."""
        if not self._rank.is_first:
            return
        try:
            self._publisher.check_fence()
            plan = retention.plan(self._run, self._expected.uid, self._keep_last, tip.point)
            for point in plan.remove:
                retention.remove(self._run, point)
                log.event("checkpoint_removed", checkpoint=point.folder)
        except Exception as error:  # noqa: BLE001 (the commit is real all the same)
            log.event("checkpoint_removal_failed", level=logging.WARNING, error=str(error))
