"""What one call of `daybreak prepare` writes: a dataset for each resolution, with all its columns,
or an existing dataset with more of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daybreak_trainer.data.card import INDEX, DatasetCard
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import IMAGE
from daybreak_trainer.prepare.prepare import GENERATORS, Progress, prepare
from daybreak_trainer.prepare.rewrite import NewColumn, rewrite
from daybreak_trainer.prepare.unreadable import REPORT


def is_dataset(source: str) -> bool:
    """Whether `source` is shards already, and not images: a URL, or a folder with an index."""
    if source in GENERATORS:
        return False
    return "://" in source or (Path(source) / INDEX).is_file()


def prepare_datasets(
    source: str,
    out: Path,
    resolutions: Sequence[int],
    *,
    added: Sequence[NewColumn] = (),
    drop_images: bool = False,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> dict[Path, DatasetCard]:
    """Cards by folder: `out`, or `out/<resolution>` where there are several. `progress`
    counts anew in each pass over the samples. `options` are `prepare`'s.

    Raises:
        DatasetError, ShardError, DataUnavailableError: as `prepare` and `rewrite`.
    """
    dropped = frozenset({IMAGE}) if drop_images else frozenset[str]()
    if is_dataset(source):
        if resolutions:
            raise DatasetError(f"{source}: is a dataset already; its --resolution is settled")
        if not added:
            raise DatasetError(f"{source}: is a dataset already; say what to add, as --latents")
        return {out: rewrite(source, out, added, dropped, progress)}
    places: dict[Path, int | None] = {out: None}
    if resolutions:
        several = len(resolutions) > 1
        places = {out / str(side) if several else out: side for side in resolutions}
    for place in places:
        if place.is_dir() and any(place.iterdir()):
            raise DatasetError(f"{place} exists already; choose another folder or remove it first")
    return {
        place: _prepare(source, place, resolution, added, dropped, progress, options)
        for place, resolution in places.items()
    }


def _prepare(
    source: str,
    out: Path,
    resolution: int | None,
    added: Sequence[NewColumn],
    dropped: frozenset[str],
    progress: Progress,
    options: dict[str, Any],
) -> DatasetCard:
    """Where columns are added, images come first, in a folder that goes again. Equal calls write
    equal images, so what was added before a stop still fits."""
    if not added:
        return prepare(source, out, resolution=resolution, progress=progress, **options)
    images = out.parent / f".{out.name}.images"
    shutil.rmtree(images, ignore_errors=True)
    if dropped and options.get("encoding") is None:
        options = options | {"encoding": "png"}  # nobody keeps them, so they may as well be exact
    try:
        prepare(source, images, resolution=resolution, progress=progress, **options)
        card = rewrite(str(images), out, added, dropped, progress)
        if (images / REPORT).exists():
            shutil.copy(images / REPORT, out / REPORT)
    finally:
        shutil.rmtree(images, ignore_errors=True)
    return card
