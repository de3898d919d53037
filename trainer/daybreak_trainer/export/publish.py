"""Brings a finished export to its place, and never over a model of another run.

`daybreak.json` in the export says whose it is and lists its files. It is written last: a folder
without it is not a finished export. Where the store can rename (local paths), the folder appears
under its name in one step; an object store is filled in place, under a claim that says by whom.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.storage import Storage, StorageError
from daybreak_trainer.contract import Message

CARD = "daybreak.json"
CLAIM = "daybreak-unfinished.json"


_CHUNK_BYTES = 1 << 20


class ExportTakenError(Exception):
    """The export's place holds something that is not this run's."""


class ExportCard(Message):
    """`daybreak.json`: whose model this is. The claim is one too, without files."""

    uid: str = Field(description="The TrainingRun's UID.")
    run: str
    namespace: str
    recipe_hash: str
    step: int = Field(description="Optimizer steps that the model was trained for.")
    weights: str = Field(default="fp32", description="Type, and which average where not the EMA.")
    files: dict[str, FileRecord] = Field(default_factory=dict, description="All but this one.")

    def names_what(self, other: ExportCard) -> bool:
        """Whether both name the same model."""
        return self.model_copy(update={"files": {}}) == other.model_copy(update={"files": {}})


def check(storage: Storage, name: str, uid: str) -> ExportCard | None:
    """The card of this run's own finished export under `name`; None where there is none.

    Raises:
        ExportTakenError: another run's export is there, finished or not, or other files.
    """
    place, url = storage.child(name), f"{storage.url}/{name}"
    what_to_do = "move it away, or give spec.export another place; nothing was overwritten"
    finished, claim = _read(place, CARD), _read(place, CLAIM)
    for card, state in ((finished, "the model"), (claim, "an unfinished model")):
        if card is not None and card.uid != uid:
            raise ExportTakenError(
                f"{url} holds {state} of run {card.namespace}/{card.run} (UID {card.uid}); "
                f"{what_to_do}"
            )
    if finished is None and claim is None and (files := place.files()):
        raise ExportTakenError(
            f"{url} holds files of unknown origin, such as {files[0]}, and no valid {CARD}; "
            f"{what_to_do}"
        )
    return finished


def check_no_other(storage: Storage, name: str, card: ExportCard) -> None:
    """For one model among several of a run: none of the others is replaced.

    Raises:
        ExportTakenError: as `check`; also another model of this run is there, finished or not.
    """
    check(storage, name, card.uid)
    place = storage.child(name)
    for file, state in ((CARD, "a model"), (CLAIM, "an unfinished model")):
        there = _read(place, file)
        if there is not None and not there.names_what(card):
            raise ExportTakenError(
                f"{place.url} holds {state} of the same run, of step {there.step}: "
                f"{there.weights}; choose another place or move it away; nothing was overwritten"
            )


def publish(
    folder: Path,
    storage: Storage,
    name: str,
    card: ExportCard,
    copied: Callable[[int], None] = lambda _: None,
) -> str:
    """Copies a local folder into the storage under `name`; returns its URL. `copied` is told how
    many bytes have gone so far.

    Where this very model is there already, finished, it stays as it is.

    Raises:
        ExportTakenError: as `check`.
        StorageError: the store failed; what is there is no finished export.
    """
    url = f"{storage.url}/{name}"
    there = check(storage, name, card.uid)
    if there is not None and there.names_what(card):
        return url
    if storage.is_local:
        _rename_into_place(folder, storage, name, card, copied)
        return url
    place = storage.child(name)
    place.write(CLAIM, card.to_json().encode())
    place.remove(CARD)
    for stale in set(place.files()) - {CLAIM}:
        place.remove(stale)
    _fill(place, folder, card, copied)
    place.remove(CLAIM)
    return url


def _rename_into_place(
    folder: Path, storage: Storage, name: str, card: ExportCard, copied: Callable[[int], None]
) -> None:
    partial, old = f".{name}.{card.uid}.partial", f".{name}.{card.uid}.old"
    for stale in (partial, old):
        storage.remove(stale)
    _fill(storage.child(partial), folder, card, copied)
    try:
        if storage.exists(name):
            os.rename(storage.path(name), storage.path(old))  # noqa: PTH104 (fsspec paths)
        os.rename(storage.path(partial), storage.path(name))  # noqa: PTH104
    except OSError as error:
        check(storage, name, card.uid)  # another run may have come first
        raise StorageError(f"{storage.url}/{name}: {error}") from error
    storage.remove(old)


def _fill(place: Storage, folder: Path, card: ExportCard, copied: Callable[[int], None]) -> None:
    """Copies the files, compares what the store has of them, and writes the card last."""
    written: dict[str, FileRecord] = {}
    total = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as source, place.create(name) as target:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
                total += len(chunk)
                copied(total)
        written[name] = target.record()
        if difference := place.verify(name, written[name]):
            raise StorageError(difference)
    place.write(CARD, card.model_copy(update={"files": written}).to_json().encode())


def _read(place: Storage, name: str) -> ExportCard | None:
    try:
        return ExportCard.model_validate_json(place.read(name))
    except (FileNotFoundError, ValidationError):
        return None
