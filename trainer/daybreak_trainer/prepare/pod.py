"""A pod that prepares its part of a run's data (`data.prepare`), from settings to exit code.

It goes on where a pod before it was stopped: parts that are there are not made again.
"""

from __future__ import annotations

import os
import shutil
import traceback
from pathlib import Path

from daybreak_trainer import contract, settings
from daybreak_trainer.contract import SOURCE_ROLE, ExitCode, PrepareSettings, Termination
from daybreak_trainer.telemetry import log

_FREE = {"name", "namespace", "nodes", "out"}
"""Settings that decide nothing of what is written."""


def run() -> Termination:
    """Does this pod's work; what became of it."""
    try:
        return _run()
    except Exception as error:  # noqa: BLE001 (the message is all that outlives the pod)
        from daybreak_trainer.rank import Standing, failure

        ended = failure(error, 0, Standing())
        if ended.traceback:
            traceback.print_exception(error)
        return ended.model_copy(update={"rank": None})


def _run() -> Termination:
    from daybreak_trainer.pod import prepare as prepare_folders

    work_dir = prepare_folders(os.environ)
    told = settings.told(os.environ, contract.ENV_PREPARE, PrepareSettings)
    index = settings.node_index(os.environ, told.nodes)
    log.configure(lambda: {"run": told.name, "namespace": told.namespace, "node": index})
    return prepare_parts(told, index, work_dir / "prepare", settings.secrets_dir())


def prepare_parts(
    told: PrepareSettings, index: int, scratch: Path, secrets_dir: Path
) -> Termination:
    """Makes every part that is this pod's and not there yet; makes all one dataset where none is
    missing.

    Raises:
        SettingsError, BadDataError, DataUnavailableError, RecipeError, HubUnreachableError,
        StorageError: as their names say.
    """
    from daybreak_trainer.checkpoint.storage import Storage
    from daybreak_trainer.prepare.divided import Divided
    from daybreak_trainer.prepare.joined import Place, Request

    source = Divided(told, settings.storage_options(secrets_dir, SOURCE_ROLE))
    # Without defaults: a later version's further options are no change.
    options = told.model_dump(mode="json", by_alias=True, exclude=_FREE, exclude_defaults=True)
    request = Request(options=options, source=source.fingerprint, parts=len(source.parts))
    out = Storage(told.out.url, settings.storage_options(secrets_dir, told.out.role))
    place = Place(out, request)
    if (whole := place.prepared) is not None:
        return _done(f"{told.out.url} was prepared before: {whole.samples} samples")
    place.claim()
    for number in range(index, len(source.parts), told.nodes):
        if place.part(number) is not None:
            continue
        folder = scratch / f"part-{number:05d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        card = source.make(source.parts[number], folder)
        place.put(number, folder, card)
        shutil.rmtree(folder)
        log.event("part_prepared", part=number, of=len(source.parts), samples=card.samples)
    if (whole := place.finish(is_rewritten=source.is_dataset)) is None:
        return _done(f"the parts of pod {index} are prepared; others are still at work")
    log.event("data_prepared", samples=whole.samples, parts=len(source.parts))
    return _done(f"{told.out.url} is prepared: {whole.samples} samples")


def _done(message: str) -> Termination:
    return Termination(reason="Prepared", message=message, exit_code=ExitCode.DONE)
