"""A run that begins from another run's commit: it takes training over and leaves the rest alone,
and begins from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from saved_run import EXPECTED, SHARD, Run, journal

from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.checkpointer import Checkpointer
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    Attempt,
    CommitPoint,
    DataPosition,
    SnapshotRef,
    SourceCommit,
    TrainState,
)
from daybreak_trainer.checkpoint.lineage import Expected
from daybreak_trainer.checkpoint.source import ResumeFromError, Source
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.parallel.process_group import Rank

ANOTHER = replace(EXPECTED, uid="v")
POINT = CommitPoint(attempt=1, step=5)


@pytest.fixture
def source(run: Run) -> Storage:
    """The folder of a commit of run u at step 5, which has cost something."""
    checkpointer = run.started(1)
    state = run.at(5)
    record = run.run.write("averages/x", b"")
    costly = state.model_copy(
        update={
            "ledger": {"productive": 100.0},
            "device_seconds": 800.0,
            "training_seconds": 99.0,
            "restarts": {"crash": 2},
            "snapshots": (SnapshotRef(point=POINT, samples=25, manifest=record),),
        }
    )
    checkpointer.save(costly, run.tensors, journal(5))
    checkpointer.wait()
    return run.run.child(POINT.folder)


def attempt(
    run: Run, rank: Rank, number: int, url: str, expected: Expected = ANOTHER
) -> Checkpointer:
    """Of run v, which begins from that URL."""
    begins = Source.of(url, expected.uid, {}, run.storage.moved)
    return Checkpointer(run.storage, expected, number, 3, rank, source=begins)


def test_training_goes_on_and_accounts_begin_anew(run: Run, alone: Rank, source: Storage) -> None:
    """Steps, samples, data and weights are taken over; time, devices, restarts and kept averages
    are the other run's. Once the run has a commit of its own it goes on from that, even where the
    other one's is gone; its lineage says where it came from. The other run's files stay as they
    are."""
    before = run.run.sizes()
    first = attempt(run, alone, 1, source.url)
    search = first.find()
    first.begin(search)
    run.at(999)
    assert search.commit is not None
    assert [line.step for line in first.load(search.commit, run.tensors)] == [1, 2, 3, 4, 5]
    assert run.weight() == 5
    origin = SourceCommit(url=source.url, uid="u", point=POINT)
    expected = TrainState(step=5, samples=25, data=DataPosition(samples=25), source=origin)
    versions = search.commit.state.versions
    assert search.commit.state == expected.model_copy(update={"versions": versions})
    assert first.reference_to(search.commit).url == source.url
    assert first.reference is None
    # At the very step, too, what stops at once leaves a commit of its own.
    own = first.save_now(search.commit.state, run.tensors, journal(5))
    assert (own.uid, own.parent, own.state.source) == ("v", None, origin)
    assert first.reference is not None
    assert first.reference.url == f"{run.storage.url}/run-v/{POINT.folder}"
    record = Attempt.unseal(run.storage.read(f"run-v/attempt-0001/{ATTEMPT}"))
    assert (record.parent, record.source) == (None, origin)
    first.close()
    assert run.run.sizes() == before
    run.run.remove("")
    second = attempt(run, alone, 2, source.url)
    search = second.find()
    second.begin(search)
    assert search.commit is not None
    assert (search.commit.uid, search.commit.point) == ("v", POINT)
    record = Attempt.unseal(run.storage.read(f"run-v/attempt-0002/{ATTEMPT}"))
    assert (record.parent, record.source) == (POINT, None)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda folder: folder.remove(""), "there is nothing there"),
        (lambda folder: folder.remove(COMMIT), "it was never finished"),
        (lambda folder: folder.write(COMMIT, b"{}"), "its COMMIT.json is damaged"),
        (lambda folder: folder.remove(SHARD), f"file {SHARD} is missing"),
        (lambda folder: folder.write(SHARD, b"x" * folder.size(SHARD)), f"{SHARD} is damaged"),
    ],
)
def test_what_is_not_good_is_refused(
    run: Run, alone: Rank, source: Storage, harm: Callable[[Storage], object], problem: str
) -> None:
    """With what is wrong; nothing is trained from the beginning instead."""
    harm(source)
    with pytest.raises(ResumeFromError, match=rf"resumeFrom: .*{source.url}: .*{problem}"):
        attempt(run, alone, 1, source.url).find()


def test_another_recipe_is_refused_unless_it_is_accepted(
    run: Run, alone: Rank, source: Storage
) -> None:
    """As with a commit of the run's own."""
    other = replace(ANOTHER, recipe_hash="other", recipe={"optimizer": {"learningRate": 2e-4}})
    with pytest.raises(ChangedError, match=r"learningRate: 0\.0001 -> 0\.0002"):
        attempt(run, alone, 1, source.url, other).find()
    accepting = replace(other, accepted=frozenset({"recipe"}))
    found = attempt(run, alone, 1, source.url, accepting).find()
    assert found.is_foreign
    assert set(found.changed) == {"recipe"}
    assert found.recipe == dict(EXPECTED.recipe)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://bucket/run-u/attempt-0003", "is no commit"),
        ("s3://bucket/run-v/attempt-0003/step-00041000", "of this very run"),
    ],
)
def test_a_url_names_a_commit_of_another_run(run: Run, url: str, problem: str) -> None:
    """Anything else is refused before a store is asked."""
    with pytest.raises(ResumeFromError, match=problem):
        Source.of(url, "v", {}, run.storage.moved)
