"""Asks every store of a run, before any training, whether it works.

A wrong key is found in seconds, and not at the first checkpoint, hours and dollars later.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.settings import Settings
from daybreak_trainer.stores.advice import Field, advice, field_of, is_lasting
from daybreak_trainer.stores.errors import StorageError, StorageRefusedError, said
from daybreak_trainer.stores.patience import PROBE, Patience

PROBE_SECONDS = 25.0
"""After this a store counts as hanging, whatever kind it is."""
_READ = "index.json"
_CONTENT = b"Daybreak looks whether it can write here, and removes this."


@dataclass(frozen=True)
class Place:
    """One of a run's stores."""

    url: str
    field: Field
    options: Mapping[str, Any]
    writable: bool


def places(settings: Settings) -> list[Place]:
    """Where a run reads and writes, as its pod was told.

    Raises:
        SettingsError: a Secret's file cannot be understood.
    """
    run = settings.run
    wanted = [("checkpoint", run.checkpoint_url, True)]
    wanted += [("export", run.export_url, True)] if run.export_url is not None else []
    wanted += [(stream.role, stream.url, False) for stream in run.streams]
    return [
        Place(url, field_of(role, settings.secrets_dir), settings.storage_options(role), writable)
        for role, url, writable in wanted
    ]


def probe(
    places: Sequence[Place], patience: Patience = PROBE, seconds: float = PROBE_SECONDS
) -> None:
    """Reads from each place, and in a writable one also writes and removes a small file; from all
    at once, in at most `seconds`. What is not there is left to whoever reads it to say.

    Raises:
        StorageRefusedError: something is set wrongly: keys, bucket, permission, URL, volume.
        StorageError: a store is full, fails or does not answer.
    """
    problems: dict[int, StorageError] = {}

    def run(number: int, place: Place) -> None:
        try:
            _probe(place, patience)
        except StorageError as error:
            problems[number] = error

    # Not a pool, which would be waited for: a path on a dead file server hangs in the kernel.
    threads = [
        threading.Thread(target=run, args=item, name="probe", daemon=True)
        for item in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for number, (thread, place) in enumerate(zip(threads, places, strict=True)):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            problems[number] = StorageError(
                f"{place.field.path}: {place.url} does not answer, for {seconds:g} s now; "
                f"{advice(TimeoutError(), place.url, place.field)}"
            )
    ordered = [problems[number] for number in sorted(problems)]
    for problem in sorted(ordered, key=lambda p: not isinstance(p, StorageRefusedError)):
        raise problem


def _probe(place: Place, patience: Patience) -> None:
    name = f".daybreak-probe-{uuid.uuid4().hex}"
    try:
        storage = Storage(place.url, place.options, patience)
    except StorageRefusedError as error:
        raise StorageRefusedError(f"{place.field.path}: {error}") from error
    if not place.writable:
        with suppress(FileNotFoundError):
            _step(place, "read", lambda: storage.read_range(_READ, 0, 1))
        return
    _step(place, "write", lambda: storage.write(name, _CONTENT))
    _step(place, "read", lambda: storage.read_range(name, 0, len(_CONTENT)))
    _step(place, "remove", lambda: storage.remove(name))


def _step(place: Place, operation: str, call: Callable[[], object]) -> None:
    try:
        call()
    except FileNotFoundError:
        if not place.writable:
            raise
        problem = f"{place.field.path}: {place.url} has lost a file that was written just now"
        raise StorageError(problem) from None
    except StorageError as error:
        cause = error.__cause__ or error
        kind = StorageRefusedError if is_lasting(cause) else StorageError
        raise kind(
            f"{place.field.path}: cannot {operation} in {place.url}: {said(cause)}; "
            f"{advice(cause, place.url, place.field)}"
        ) from error
