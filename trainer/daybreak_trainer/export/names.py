"""Names of files that a manifest lists, which somebody else may have written."""

from __future__ import annotations

from pathlib import Path


def inside(folder: Path, name: str) -> Path:
    """The file of this name below `folder`.

    Raises:
        ValueError: the name leads out of the folder.
    """
    target = folder / name
    if folder.resolve() not in target.resolve().parents:
        raise ValueError(f"names a file outside of its folder: {name}")
    return target
