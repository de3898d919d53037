"""Which checkpoint a new attempt goes on from.

The newest is not the one with the highest step: a worker that outlived its attempt may have
committed steps that a later attempt never saw. The lineage is walked back from the last attempt:
its commits from the newest down, then the commit it came from, and so on. Whatever cannot be
trusted is passed over, with one sentence saying what and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from daybreak_trainer.checkpoint.layout import (
    ATTEMPT,
    COMMIT,
    Attempt,
    Commit,
    CommitPoint,
    attempt_folder,
    step_folder,
)
from daybreak_trainer.checkpoint.storage import Storage


@dataclass
class Search:
    """What a search found."""

    commit: Commit | None = None
    skipped: list[str] = field(default_factory=list)
    """One sentence for each checkpoint passed over."""


@dataclass(frozen=True)
class Expected:
    """What a checkpoint must have been made with."""

    uid: str
    recipe_hash: str
    dataset_fingerprint: str


Damage = Callable[[Storage, Commit], str | None]
"""Says what is wrong with a commit's files, or None. A collective where there are ranks."""


def find(run: Storage, before_attempt: int, expected: Expected, damage: Damage) -> Search:
    """The newest good commit of the lineage of attempts before `before_attempt`."""
    search = Search()
    for point in _walk(run, before_attempt, expected.uid, search.skipped):
        name = f"checkpoint {point.folder}"
        commit = _read_commit(run, point, name, search.skipped)
        if commit is None:
            continue
        if problem := _foreign(commit, point, expected) or damage(run.child(point.folder), commit):
            search.skipped.append(f"{name} was passed over: {problem}")
            continue
        search.commit = commit
        return search
    return search


def _walk(run: Storage, before_attempt: int, uid: str, skipped: list[str]) -> Iterator[CommitPoint]:
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
        found = Attempt.model_validate_json(run.read(name))
    except FileNotFoundError:
        return None
    except ValidationError:
        found = None
    if found is not None and (found.uid, found.attempt) == (uid, attempt):
        return found
    for step in steps:
        commit = _read_commit(run, CommitPoint(attempt=attempt, step=step), "", [])
        if commit is None or commit.uid != uid:
            continue
        if commit.parent is None or commit.parent.attempt < attempt:
            skipped.append(f"{name} is damaged and was passed over: a commit tells its origin")
            return Attempt(uid=uid, attempt=attempt, parent=commit.parent)
    skipped.append(
        f"{name} is damaged and no commit tells its origin, so every checkpoint before "
        f"{attempt_folder(attempt)} was passed over"
    )
    return Attempt(uid=uid, attempt=attempt, parent=None)


def _read_commit(run: Storage, point: CommitPoint, name: str, skipped: list[str]) -> Commit | None:
    try:
        return Commit.model_validate_json(run.read(f"{point.folder}/{COMMIT}"))
    except FileNotFoundError:
        skipped.append(f"{name} was passed over: it has no {COMMIT}, so it was never finished")
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "JSON"
        skipped.append(f"{name} was passed over: its {COMMIT} is damaged ({where})")
    return None


def _foreign(commit: Commit, point: CommitPoint, expected: Expected) -> str | None:
    if commit.uid != expected.uid:
        return f"it belongs to another run (UID {commit.uid})"
    if commit.point != point:
        return f"its {COMMIT} is that of {commit.point.folder}"
    if commit.recipe_hash != expected.recipe_hash:
        return f"it was made with recipe {commit.recipe_hash}, this run has {expected.recipe_hash}"
    if commit.dataset_fingerprint != expected.dataset_fingerprint:
        return "it was made with another dataset (fingerprint differs)"
    return None


def damaged_files(checkpoint: Storage, commit: Commit, names: list[str]) -> str | None:
    """Reads the named files and compares them with what was written; says what differs."""
    for name in names:
        expected = commit.files[name]
        try:
            found = checkpoint.record(name)
        except FileNotFoundError:
            return f"file {name} is missing"
        if found.size != expected.size:
            return f"file {name} has {found.size} bytes instead of {expected.size}"
        if found.xxh64 != expected.xxh64:
            return f"file {name} is damaged (xxh64 {found.xxh64} instead of {expected.xxh64})"
    return None


def prune(run: Storage, lineage_tip: Commit, keep_last: int) -> None:
    """Removes the oldest commits of this run beyond `keep_last`; `COMMIT.json` goes first, so a
    half-removed checkpoint is none. Commits off the lineage, newer than its tip, are left alone."""
    points = [
        CommitPoint(attempt=attempt, step=step)
        for attempt in numbered(run.folders(), "attempt-")
        if attempt <= lineage_tip.attempt
        for step in numbered(run.folders(attempt_folder(attempt)), "step-")
        if run.exists(f"{attempt_folder(attempt)}/{step_folder(step)}/{COMMIT}")
    ]
    for point in points[: max(0, len(points) - keep_last)]:
        run.remove(f"{point.folder}/{COMMIT}")
        run.remove(point.folder)
