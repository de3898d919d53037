"""Which checkpoint a new attempt goes on from: the lineage's newest good one, and never another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.checkpoint import layout, lineage, verify
from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    DATA,
    FORMAT,
    RECIPE,
    Attempt,
    Commit,
    CommitPoint,
    TrainState,
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
    run.write(f"{attempt_folder(attempt)}/{ATTEMPT}", record.seal())


def committed(
    run: Storage,
    attempt: int,
    step: int,
    parent: tuple[int, int] | None = None,
    documents: Mapping[str, Mapping[str, object]] | None = None,
    **changes: str,
) -> Storage:
    point = CommitPoint(attempt=attempt, step=step)
    folder = run.child(point.folder)
    files = {"shard": folder.write("shard", f"weights of step {step}".encode())}
    for name, document in (documents or {}).items():
        files[name] = folder.write(name, json.dumps(document).encode())
    values = {"uid": "u", "recipe_hash": "r", "dataset_fingerprint": "d"} | changes
    commit = Commit(
        format=FORMAT,
        attempt=attempt,
        parent=CommitPoint(attempt=parent[0], step=parent[1]) if parent else None,
        state=TrainState(step=step, samples=step),
        world=1,
        time="2026-01-01T00:00:00Z",
        files=files,
        **values,
    )
    folder.write(COMMIT, commit.seal())
    return folder


def found(run: Storage, before_attempt: int = 9, expected: Expected = EXPECTED) -> Search:
    def damage(checkpoint: Storage, commit: Commit) -> str | None:
        return next(iter(verify.damages(checkpoint, commit.files, sorted(commit.files))), None)

    return lineage.find(run, before_attempt, expected, damage)


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


def test_a_foreign_checkpoint_is_not_ours(run: Storage) -> None:
    """Another run's commit is never resumed from, and is no reason to refuse."""
    started(run, 1, None)
    committed(run, 1, 10)
    committed(run, 1, 20, uid="other")
    search = found(run)
    assert search.commit is not None
    assert search.commit.step == 10
    assert "belongs to another run (UID other)" in search.skipped[0]


RECIPE_NOW = {"optimizer": {"kind": "adamw", "learningRate": 0.0002}, "stages": [{"steps": 5}]}
RECIPE_THEN = {
    "optimizer": {"kind": "adamw", "learningRate": 0.0001},
    "stages": [{"steps": 5}, {"steps": 7}],
    "seed": 1,
}


def changed_run(run: Storage) -> Expected:
    """A run whose newest commit was made with another recipe and other data, and an older one that
    was not: what it expects now."""
    now = Expected("u", "r2", "d2", recipe=RECIPE_NOW, data={"data-0": "100 samples"})
    documents = {RECIPE: RECIPE_THEN, DATA: {"data-0": "90 samples"}}
    started(run, 1, None)
    committed(run, 1, 10, recipe_hash="r2", dataset_fingerprint="d2")
    committed(run, 1, 20, documents=documents)
    return now


@pytest.mark.parametrize("accepted", [frozenset(), frozenset({"recipe"}), frozenset({"data"})])
def test_a_changed_recipe_is_refused_and_explained(run: Storage, accepted: frozenset[str]) -> None:
    """Field by field, with the setting that accepts all of it. It never falls back to an older
    commit, and never begins afresh."""
    expected = replace(changed_run(run), accepted=accepted)
    with pytest.raises(ChangedError) as caught:
        found(run, expected=expected)
    assert str(caught.value).splitlines() == [
        f"checkpoint {run.url}/attempt-0001/step-00000020 was made with another recipe and other "
        "data than this run has:",
        "  recipe: optimizer.learningRate: 0.0001 -> 0.0002",
        "  recipe: seed: 1 -> (absent)",
        "  recipe: stages[1].steps: 7 -> (absent)",
        '  data: data-0: "90 samples" -> "100 samples"',
        "set checkpoint.acceptChanges: [data, recipe] to go on from it all the same, or give the "
        "run back what it had",
    ]


def test_an_accepted_change_is_resumed_and_told(run: Storage) -> None:
    """From the newest commit, with what differs."""
    accepted = frozenset({"recipe", "data"})
    search = found(run, expected=replace(changed_run(run), accepted=accepted))
    assert search.commit is not None
    assert search.commit.step == 20
    assert search.changed["data"] == ['data-0: "90 samples" -> "100 samples"']
    assert "optimizer.learningRate: 0.0001 -> 0.0002" in search.changed["recipe"]


def test_a_change_that_nothing_explains_is_refused_by_hash(run: Storage) -> None:
    """The document is damaged: the hashes still differ."""
    expected = changed_run(run)
    run.write(f"attempt-0001/step-00000020/{RECIPE}", b"{")
    with pytest.raises(ChangedError, match="recipe: hash: r -> r2"):
        found(run, expected=expected)


@pytest.mark.parametrize("number", [1, 4])
def test_another_format_is_refused(run: Storage, number: int) -> None:
    """What an older or a newer version wrote is not passed over: that would begin afresh."""
    started(run, 1, None)
    folder = committed(run, 1, 10)
    document = json.loads(folder.read(COMMIT))
    document["format"] = number
    if number == 1:
        del document["format"]  # it had none
    folder.write(COMMIT, json.dumps(document).encode())
    with pytest.raises(ChangedError, match=f"has format {number} and this version"):
        found(run)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), name=st.sampled_from([COMMIT, ATTEMPT]))
def test_a_flipped_bit_is_never_believed(place: int, bit: int, name: str) -> None:
    """Of the two files that make the lineage: the commit is passed over or refused, the origin is
    told by the commit; nobody resumes from what it now says."""
    run = Storage("memory://flipped")
    run.remove("")
    started(run, 1, None)
    committed(run, 1, 10)
    started(run, 2, (1, 10))
    committed(run, 2, 20, parent=(1, 10))
    last = CommitPoint(attempt=2, step=20)
    where = f"{last.folder}/{COMMIT}" if name == COMMIT else f"{attempt_folder(2)}/{ATTEMPT}"
    raw = bytearray(run.read(where))
    raw[place % len(raw)] ^= 1 << bit
    run.write(where, bytes(raw))
    try:
        commit = found(run).commit
    except ChangedError:
        return
    assert commit is not None
    assert commit.point.order == ((2, 20) if name == ATTEMPT else (1, 10))


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


def sealed_by_another_version(run: Storage, change: Callable[[dict[str, Any]], None]) -> Storage:
    """A commit whose writer knew other fields."""
    started(run, 1, None)
    folder = committed(run, 1, 10)
    document = json.loads(folder.read(COMMIT))
    change(document)
    document["digest"] = layout._digest(document)
    folder.write(COMMIT, json.dumps(document).encode())
    return folder


def test_a_commit_that_lacks_what_is_new_is_gone_on_from(run: Storage) -> None:
    """Its digest is of what it holds, so a field that has a default since then is no damage."""

    def change(document: dict[str, Any]) -> None:
        del document["state"]["badSteps"]

    sealed_by_another_version(run, change)
    search = found(run)
    assert search.skipped == []
    assert search.commit is not None
    assert search.commit.state.bad_steps == 0


def test_a_whole_commit_that_cannot_be_read_is_refused(run: Storage) -> None:
    """It is no damage: passing it over would train the run again from its start."""

    def change(document: dict[str, Any]) -> None:
        document["state"]["newer"] = 1

    sealed_by_another_version(run, change)
    with pytest.raises(ChangedError, match="whole and was written by another version"):
        found(run)
