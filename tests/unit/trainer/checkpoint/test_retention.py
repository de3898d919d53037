"""Which checkpoints go: whatever happened to a run, what it can resume from stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.checkpoint import lineage, retention
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    FORMAT,
    Attempt,
    Commit,
    CommitPoint,
    TrainState,
    attempt_folder,
)
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.retention import Plan
from daybreak_trainer.checkpoint.storage import Storage

UID = "u"


@dataclass
class History:
    """A run's storage, and what is true of it."""

    run: Storage = field(default_factory=lambda: Storage(f"memory://retention-{uuid4().hex}"))
    lineage: list[CommitPoint] = field(default_factory=list)
    """Good commits that a resume would reach, oldest first."""

    def starts(self, attempt: int) -> None:
        parent = self.lineage[-1] if self.lineage else None
        record = Attempt(uid=UID, attempt=attempt, parent=parent)
        self.run.write(f"{attempt_folder(attempt)}/{ATTEMPT}", record.seal())

    def commits(self, attempt: int, step: int, uid: str = UID) -> CommitPoint:
        point = self.leaves(attempt, step)
        commit = Commit(
            format=FORMAT,
            uid=uid,
            attempt=attempt,
            recipe_hash="r",
            dataset_fingerprint="d",
            state=TrainState(step=step, samples=step),
            world=1,
            time="2026-01-01T00:00:00Z",
            files={"shard": self.run.child(point.folder).record("shard")},
        )
        self.run.write(f"{point.folder}/{COMMIT}", commit.seal())
        return point

    def leaves(self, attempt: int, step: int) -> CommitPoint:
        """A save that was killed."""
        point = CommitPoint(attempt=attempt, step=step)
        self.run.write(f"{point.folder}/shard", b"weights")
        return point

    def found(self) -> CommitPoint | None:
        expected = Expected(UID, "r", "d")
        commit = lineage.find(self.run, 1000, expected, lambda *_: None).commit
        return commit.point if commit else None

    def folders(self) -> set[CommitPoint]:
        return set(retention.folders(self.run))


@st.composite
def histories(draw: st.DrawFn) -> tuple[History, set[CommitPoint]]:
    """Attempts that commit, die in a save, meet damaged commits, and are outlived by workers that
    go on committing. Also the folders that come after the lineage's tip."""
    history = History()
    for attempt in range(1, draw(st.integers(1, 4)) + 1):
        history.starts(attempt)
        step = history.lineage[-1].step if history.lineage else 0
        for kind in draw(st.lists(st.sampled_from(["commit", "partial", "bad"]), max_size=4)):
            step += draw(st.integers(1, 3))
            if kind == "commit":
                history.lineage.append(history.commits(attempt, step))
            else:
                point = history.leaves(attempt, step)
                if kind == "bad":
                    history.run.write(f"{point.folder}/{COMMIT}", b"{")
    tip = history.lineage[-1].order if history.lineage else (0, 0)
    for attempt in range(1, tip[0]):  # workers that outlived their attempts
        for _ in range(draw(st.integers(0, 2))):
            # Beyond where the next attempt branched off, and beyond what this one did itself.
            step = 100 + draw(st.integers(0, 3))
            (history.commits if draw(st.booleans()) else history.leaves)(attempt, step)
    return history, {point for point in history.folders() if point.order > tip}


@given(histories(), st.integers(1, 4))
def test_what_a_run_resumes_from_stays(
    drawn: tuple[History, set[CommitPoint]], keep_last: int
) -> None:
    """The newest commits of the lineage stay, never fewer than two; nothing that may be in flight
    goes; no folder of a killed save stays before the tip; and a second look finds no more to do."""
    history, in_flight = drawn
    run, tip = history.run, history.found()
    assert tip == (history.lineage[-1] if history.lineage else None)
    plan = retention.plan(run, UID, keep_last)
    for point in plan.remove:
        retention.remove(run, point)
    left = history.folders()
    kept = history.lineage[-max(2, keep_last) :]
    assert list(reversed(plan.keep)) == kept
    assert left >= set(kept) | in_flight
    assert history.found() == tip
    commits = {point for point in left if run.exists(f"{point.folder}/{COMMIT}")}
    assert left - commits <= in_flight or tip is None
    if len(kept) == max(2, keep_last):
        readable = {p for p in commits if isinstance(lineage.read_commit(run, p, UID), Commit)}
        assert all(point.order >= kept[0].order for point in readable)
    assert retention.plan(run, UID, keep_last).remove == ()


@settings(max_examples=50)
@given(histories(), st.data())
def test_a_removal_may_end_anywhere(
    drawn: tuple[History, set[CommitPoint]], data: st.DataObject
) -> None:
    """Killed between two requests: what is left is no commit that misses files, and the next
    removal finishes it."""
    history, _ = drawn
    run = history.run
    plan = retention.plan(run, UID, 2)
    requests = list(_requests(run, plan))
    for path in requests[: data.draw(st.integers(0, len(requests)))]:
        run.remove(path)
    for point in history.folders():
        if run.exists(f"{point.folder}/{COMMIT}"):
            assert run.exists(f"{point.folder}/shard")
    again = retention.plan(run, UID, 2)
    assert again.keep == plan.keep
    for point in again.remove:
        retention.remove(run, point)
    assert not history.folders() & set(plan.remove)


def _requests(run: Storage, plan: Plan) -> Iterator[str]:
    """What is deleted, in the order that a store sees."""
    for point in plan.remove:
        yield f"{point.folder}/{COMMIT}"
        yield from (f"{point.folder}/{name}" for name in run.files(point.folder))


def test_a_leftovers_commits_do_not_count() -> None:
    """A worker of attempt 1 that goes on committing after attempt 2 branched off: its commits push
    none of the lineage out, however many they are."""
    history = History()
    history.starts(1)
    first = history.commits(1, 10)
    history.lineage.append(first)
    history.starts(2)
    second = history.commits(2, 11)
    strays = [history.commits(1, step) for step in (20, 30, 40)]
    plan = retention.plan(history.run, UID, 2)
    assert plan == Plan(keep=(second, first))
    third = history.commits(2, 12)
    fourth = history.commits(2, 13)
    assert retention.plan(history.run, UID, 2) == Plan((fourth, third), (first, *strays, second))


@pytest.mark.parametrize("step", [5, 15])
def test_what_is_another_runs_stays(step: int) -> None:
    """Even in this run's folder; and so does what cannot be read."""
    history = History()
    history.starts(1)
    foreign = history.commits(1, step, uid="other")
    unread = history.leaves(1, step + 1)
    history.run.write(f"{unread.folder}/{COMMIT}", b"{")
    for number in (20, 30):
        history.commits(1, number)
    assert not set(retention.plan(history.run, UID, 2).remove) & {foreign, unread}


def test_an_earlier_tip_leaves_what_follows_alone() -> None:
    """A worker prunes up to its own commit: what is beyond it is not its business."""
    history = History()
    history.starts(1)
    points = [history.commits(1, step) for step in (10, 20, 30, 40)]
    partial = history.leaves(1, 35)
    plan = retention.plan(history.run, UID, 2, tip=points[2])
    assert plan == Plan((points[2], points[1]), (points[0],))
    assert partial in retention.plan(history.run, UID, 2).remove
