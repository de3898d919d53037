"""Which checkpoint a new attempt goes on from.

The newest is not the one with the highest step: a worker that outlived its attempt may have
committed steps that a later attempt never saw. The lineage is walked back from the last attempt:
its commits from the newest down, then the commit it came from, and so on. Whatever cannot be
trusted is passed over, with one sentence saying what and why. What can be trusted and was made with
another recipe or other data is not: that would train the run again from its start, unasked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from daybreak_trainer.checkpoint import changes
from daybreak_trainer.checkpoint.changes import ChangedError
from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    FORMAT,
    RECIPE,
    Attempt,
    Commit,
    CommitPoint,
    attempt_folder,
    is_whole,
)
from daybreak_trainer.checkpoint.storage import Storage


@dataclass
class Search:
    """What a search found."""

    commit: Commit | None = None
    skipped: list[str] = field(default_factory=list)
    """One sentence for each checkpoint passed over."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """What differs from the commit and was accepted, by kind (`recipe`, `data`)."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The commit's, where that or the run is another; empty where it cannot be read."""
    is_foreign: bool = False
    """The commit is another run's (`source`)."""


@dataclass(frozen=True)
class Expected:
    """What a checkpoint must have been made with."""

    uid: str
    recipe_hash: str
    dataset_fingerprint: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as a document, as users write it: kept in checkpoints to explain a change."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What describes the data, for the same end."""
    accepted: frozenset[str] = frozenset()
    """Of `recipe` and `data`, those that may differ (`checkpoint.acceptChanges`)."""


Damage = Callable[[Storage, Commit], str | None]
"""Says what is wrong with a commit's files, or None. A collective where there are ranks."""


def find(run: Storage, before_attempt: int, expected: Expected, damage: Damage) -> Search:
    """The newest good commit of the lineage of attempts before `before_attempt`.

    Raises:
        ChangedError: it was made with a recipe or data that differ and are not accepted, or by a
            version of Daybreak whose checkpoints this one cannot read.
        StorageError: the store cannot be read.
    """
    walking = searching(run, before_attempt, expected)
    problem: str | None = None
    while True:
        try:
            commit = walking.send(problem)
        except StopIteration as end:
            found: Search = end.value
            return found
        problem = damage(run.child(commit.point.folder), commit)


def searching(
    run: Storage, before_attempt: int, expected: Expected
) -> Generator[Commit, str | None, Search]:
    """As `find`; yields the commits whose files are to be read, and takes what is wrong with
    them."""
    search = Search()
    for point in walk(run, before_attempt, expected.uid, search.skipped):
        name = f"checkpoint {point.folder}"
        commit = read_commit(run, point, expected.uid)
        if isinstance(commit, str):
            search.skipped.append(f"{name} was passed over: {commit}")
            continue
        checkpoint = run.child(point.folder)
        changed = compared(checkpoint, commit, expected)
        if problem := (yield commit):
            search.skipped.append(f"{name} was passed over: {problem}")
            continue
        search.commit, search.changed = commit, changed
        if "recipe" in changed:
            search.recipe = changes.document(checkpoint, RECIPE)
        return search
    return search


def compared(checkpoint: Storage, commit: Commit, expected: Expected) -> dict[str, list[str]]:
    """What differs and is accepted. Asked before the files are read: a refusal must not cost a
    download.

    Raises:
        ChangedError: more than that differs.
    """
    found = changes.describe(
        checkpoint,
        commit,
        expected.recipe_hash,
        expected.recipe,
        expected.dataset_fingerprint,
        expected.data,
    )
    if not expected.accepted.issuperset(found):
        name = f"checkpoint {checkpoint.url}"
        raise ChangedError(changes.refusal(name, found, expected.accepted))
    return found


def walk(run: Storage, before_attempt: int, uid: str, skipped: list[str]) -> Iterator[CommitPoint]:
    """Candidates, best first: the attempts' folders, cut where a later attempt branched off."""
    upper_step: int | None = None
    attempts = [n for n in numbered(run.folders(), "attempt-") if n < before_attempt]
    while attempts:
        attempt = attempts.pop()
        steps = numbered(run.folders(attempt_folder(attempt)), "step-")
        for step in reversed(steps):
            if upper_step is None or step <= upper_step:
                yield CommitPoint(attempt=attempt, step=step)
        origin = _origin(run, attempt, steps, uid, skipped)
        if origin is not None:
            if origin.parent is None:
                return
            attempts = [n for n in attempts if n <= origin.parent.attempt]
            upper_step = origin.parent.step
        # An attempt that died before it wrote where it came from committed nothing either: go on
        # with the attempt before it, under the same bound.


def numbered(names: list[str], prefix: str) -> list[int]:
    """The numbers of `<prefix><number>` names, ascending; other names are not ours."""
    rest = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return sorted(int(number) for number in rest if number.isdecimal())


def _origin(
    run: Storage, attempt: int, steps: list[int], uid: str, skipped: list[str]
) -> Attempt | None:
    """Where an attempt came from; None where it never wrote that down.

    Its first commit names its parent too, which makes a damaged `ATTEMPT.json` good. Where no
    commit is left to tell, the lineage ends here: what came before may be a stray worker's.
    """
    name = f"{attempt_folder(attempt)}/{ATTEMPT}"
    try:
        found = Attempt.unseal(run.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if found is not None and (found.uid, found.attempt) == (uid, attempt):
        return found
    for step in steps:
        commit = read_commit(run, CommitPoint(attempt=attempt, step=step), uid)
        if isinstance(commit, str):
            continue
        if commit.parent is None or commit.parent.attempt < attempt:
            skipped.append(f"{name} is damaged and was passed over: a commit tells its origin")
            return Attempt(uid=uid, attempt=attempt, parent=commit.parent)
    skipped.append(
        f"{name} is damaged and no commit tells its origin, so every checkpoint before "
        f"{attempt_folder(attempt)} was passed over"
    )
    return Attempt(uid=uid, attempt=attempt, parent=None)


def read_commit(run: Storage, point: CommitPoint, uid: str) -> Commit | str:
    """The commit of a checkpoint's folder, or what is wrong with it.

    Raises:
        ChangedError: it is whole, and of a format that this version cannot read.
    """
    name = f"{point.folder}/{COMMIT}"
    try:
        raw = run.read(name)
    except FileNotFoundError:
        return f"it has no {COMMIT}, so it was never finished"
    try:
        commit = Commit.unseal(raw)
    except ValueError as error:
        if (number := _format(raw)) not in (None, FORMAT):
            raise ChangedError(
                f"checkpoint {run.url}/{point.folder} has format {number} and this version of "
                f"Daybreak reads format {FORMAT}; go on with the image that wrote it, or start a "
                "new run"
            ) from None
        if is_whole(raw):
            raise ChangedError(
                f"checkpoint {run.url}/{point.folder}: its {COMMIT} is whole and was written by "
                f"another version of Daybreak, which this one cannot read ({error}); go on with "
                "the image that wrote it, or start a new run"
            ) from None
        return f"its {COMMIT} is damaged"
    if commit.uid != uid:
        return f"it belongs to another run (UID {commit.uid})"
    if commit.point != point:
        return f"its {COMMIT} is that of {commit.point.folder}"
    return commit


def _format(raw: bytes) -> int | None:
    """Of a commit that cannot be read; the first format had no number."""
    try:
        document = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(document, dict) or "files" not in document:
        return None
    number = document.get("format", 1)
    return number if isinstance(number, int) else None
