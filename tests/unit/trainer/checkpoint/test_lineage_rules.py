"""Which checkpoint a new attempt goes on from: the lineage's newest good one, and never another."""

from __future__ import annotations

from pathlib import Path

import pytest

from daybreak_trainer.checkpoint import lineage
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    Attempt,
    Commit,
    CommitPoint,
    attempt_folder,
)
from daybreak_trainer.checkpoint.lineage import Expected, Search
from daybreak_trainer.checkpoint.storage import Storage

EXPECTED = Expected(uid="u", recipe_hash="r", dataset_fingerprint="d")


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    url = str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"
    return Storage(url)


def started(run: Storage, attempt: int, parent: tuple[int, int] | None) -> None:
    point = CommitPoint(attempt=parent[0], step=parent[1]) if parent else None
    record = Attempt(uid="u", attempt=attempt, parent=point)
    run.write(f"{attempt_folder(attempt)}/{ATTEMPT}", record.to_json().encode())


def committed(
    run: Storage,
    attempt: int,
    step: int,
    parent: tuple[int, int] | None = None,
    **changes: str,
) -> Storage:
    point = CommitPoint(attempt=attempt, step=step)
    folder = run.child(point.folder)
    files = {"shard": folder.write("shard", f"weights of step {step}".encode())}
    values = {"uid": "u", "recipe_hash": "r", "dataset_fingerprint": "d"} | changes
    commit = Commit(
        attempt=attempt,
        step=step,
        samples=step,
        parent=CommitPoint(attempt=parent[0], step=parent[1]) if parent else None,
        training_seconds=1.0,
        world=1,
        time="2026-01-01T00:00:00Z",
        files=files,
        **values,
    )
    folder.write(COMMIT, commit.to_json().encode())
    return folder


def found(run: Storage, before_attempt: int = 9) -> Search:
    def damage(checkpoint: Storage, commit: Commit) -> str | None:
        return lineage.damaged_files(checkpoint, commit, sorted(commit.files))

    return lineage.find(run, before_attempt, EXPECTED, damage)


def test_nothing_there_is_a_fresh_start(run: Storage) -> None:
    """An empty storage has no commit and nothing to complain about."""
    assert found(run) == Search(None, [])


def test_the_newest_commit_of_the_last_attempt_wins(run: Storage) -> None:
    """Not the first, not an older attempt's."""
    started(run, 1, None)
    committed(run, 1, 10)
    started(run, 2, (1, 10))
    committed(run, 2, 20)
    committed(run, 2, 30)
    commit = found(run).commit
    assert commit is not None
    assert commit.point == CommitPoint(attempt=2, step=30)


def test_a_worker_that_outlived_its_attempt_is_not_believed(run: Storage) -> None:
    """Steps that an old attempt committed after a new one branched off are off the lineage, even
    where the new attempt has no good commit and theirs is the highest step."""
    started(run, 1, None)
    committed(run, 1, 10)
    committed(run, 1, 50)
    started(run, 2, (1, 10))
    folder = committed(run, 2, 20)
    folder.write("shard", b"damaged")
    search = found(run)
    assert search.commit is not None
    assert search.commit.point == CommitPoint(attempt=1, step=10)
    assert "attempt-0002/step-00000020 was passed over: file shard has" in search.skipped[0]


def test_a_checkpoint_without_commit_is_none(run: Storage) -> None:
    """Half-written, it is passed over and said."""
    started(run, 1, None)
    committed(run, 1, 10)
    run.write("attempt-0001/step-00000020/shard", b"half")
    search = found(run)
    assert search.commit is not None
    assert search.commit.step == 10
    assert search.skipped == [
        "checkpoint attempt-0001/step-00000020 was passed over: it has no COMMIT.json, so it was "
        "never finished"
    ]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: f.write("shard", b"weights of step 2O"), "file shard is damaged (xxh64"),
        (lambda f: f.write("shard", b"cut"), "file shard has 3 bytes instead of 18"),
        (lambda f: f.remove("shard"), "file shard is missing"),
        (lambda f: f.write(COMMIT, b'{"uid": "u"'), "its COMMIT.json is damaged"),
    ],
)
def test_damage_is_named_and_passed_over(run: Storage, spoil: object, sentence: str) -> None:
    """The next older commit is used; the sentence names the file."""
    started(run, 1, None)
    committed(run, 1, 10)
    spoil(committed(run, 1, 20))  # type: ignore[operator]
    search = found(run)
    assert search.commit is not None
    assert search.commit.step == 10
    assert sentence in search.skipped[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"uid": "other"}, "belongs to another run"),
        ({"recipe_hash": "other"}, "made with recipe other"),
        ({"dataset_fingerprint": "other"}, "another dataset"),
    ],
)
def test_a_foreign_checkpoint_is_not_ours(
    run: Storage, changes: dict[str, str], sentence: str
) -> None:
    """Another run's, recipe's or dataset's commit is never resumed from."""
    started(run, 1, None)
    committed(run, 1, 10, **changes)
    search = found(run)
    assert search.commit is None
    assert sentence in search.skipped[0]


def test_an_attempt_that_began_afresh_ends_the_lineage(run: Storage) -> None:
    """What it could not use, no later attempt uses."""
    started(run, 1, None)
    committed(run, 1, 10)
    started(run, 2, None)
    assert found(run).commit is None


DAMAGED = [b"", b"{", b"\xff\xfe", b"[]", b'{"uid": "u", "attempt": 1, "parent": null}']
"""An `ATTEMPT.json` cut, not JSON, not UTF-8, not an object, and another attempt's."""


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_origin_is_read_from_the_first_commit(run: Storage, damaged: bytes) -> None:
    """A damaged ATTEMPT.json is no missing one: steps that attempt 1 committed after attempt 2
    branched off stay off the lineage, those before stay on it, and the file is named."""
    started(run, 1, None)
    committed(run, 1, 10)
    committed(run, 1, 50)
    committed(run, 2, 20, parent=(1, 10)).write("shard", b"damaged")
    committed(run, 2, 30, parent=(2, 20)).write("shard", b"damaged")
    run.write(f"attempt-0002/{ATTEMPT}", damaged)
    search = found(run)
    assert search.commit is not None
    assert search.commit.point == CommitPoint(attempt=1, step=10)
    assert any(f"attempt-0002/{ATTEMPT} is damaged" in sentence for sentence in search.skipped)


@pytest.mark.parametrize("damaged", DAMAGED)
def test_an_origin_that_nothing_tells_ends_the_lineage(run: Storage, damaged: bytes) -> None:
    """No commit of the attempt is left to say where it came from: nothing older is trusted."""
    started(run, 1, None)
    committed(run, 1, 10)
    committed(run, 1, 50)
    committed(run, 2, 30, parent=(2, 20)).write("shard", b"damaged")
    run.write(f"attempt-0002/{ATTEMPT}", damaged)
    search = found(run)
    assert search.commit is None
    assert "every checkpoint before attempt-0002 was passed over" in search.skipped[-1]


def test_a_damaged_origin_does_not_cost_the_attempts_own_commits(run: Storage) -> None:
    """What the attempt itself committed is still the newest of the lineage."""
    started(run, 1, None)
    committed(run, 1, 10)
    committed(run, 2, 20, parent=(1, 10))
    run.write(f"attempt-0002/{ATTEMPT}", b"{")
    search = found(run)
    assert search.commit is not None
    assert search.commit.point == CommitPoint(attempt=2, step=20)


def test_an_attempt_that_never_said_its_origin_is_stepped_over(run: Storage) -> None:
    """It died before its first file: the attempt before it goes on."""
    started(run, 1, None)
    committed(run, 1, 10)
    run.write("attempt-0002/step-00000020/shard", b"half")
    search = found(run)
    assert search.commit is not None
    assert search.commit.point == CommitPoint(attempt=1, step=10)


def test_pruning_keeps_the_newest(run: Storage) -> None:
    """`keep_last` commits stay, over attempts; what stays is whole."""
    started(run, 1, None)
    for step in (10, 20):
        committed(run, 1, step)
    started(run, 2, (1, 20))
    for step in (30, 40):
        committed(run, 2, step)
    tip = found(run).commit
    assert tip is not None
    lineage.prune(run, tip, keep_last=3)
    assert run.folders("attempt-0001") == ["step-00000020"]
    assert run.folders("attempt-0002") == ["step-00000030", "step-00000040"]
    assert found(run) == Search(tip, [])
