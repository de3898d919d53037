"""A folder of images with captions: `captions.jsonl`, or a `.txt` or `.json` beside each image.

An image may have several captions: `caption`, and others under names of their own, such as
`caption_short`. All images have the same ones, for a run draws from them by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare.unreadable import decoded

CAPTIONS = "captions.jsonl"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_FURTHER = re.compile(r"caption_[a-z0-9_]{1,50}")


@dataclass(frozen=True)
class Captioned:
    file: Path
    captions: Mapping[str, str]
    """By column."""


Listed = Captioned | Path
"""An image whose captions stand in an index, or one that has them beside it, still to be read."""


def listed(folder: Path) -> Sequence[Listed]:
    """All images of a folder in a fixed order; no caption is read that lies in a file of its own.

    Raises:
        DatasetError: no images, a line of the index that is no JSON object with `file` and
            `caption`, or names a missing file. The message names it.
    """
    index = folder / CAPTIONS
    found: Sequence[Listed] = _from_index(index) if index.is_file() else _images(folder)
    if not found:
        raise DatasetError(
            f"{folder}: no images here; put {', '.join(sorted(SUFFIXES))} files with captions in "
            f"{CAPTIONS} or in a .txt beside each"
        )
    return found


def captioned(images: Sequence[Listed]) -> list[Captioned]:
    """With their captions.

    Raises:
        DatasetError: a caption is missing or empty, or an image has others than the one before. The
            message names it.
    """
    found = [
        item if isinstance(item, Captioned) else Captioned(item, _sidecar(item)) for item in images
    ]
    first = found[0]
    for item in found:
        if differing := set(item.captions) ^ set(first.captions):
            raise DatasetError(
                f"{item.file} and {first.file} do not both have {min(differing)}; every image of a "
                "dataset needs the same captions"
            )
    return found


def _from_index(index: Path) -> list[Captioned]:
    found = []
    # Not `splitlines`, which also cuts at characters that JSON allows within a text (U+2028).
    for number, line in enumerate(_text(index).split("\n"), start=1):
        where = f"{index}:{number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, captions = entry["file"], _captions(entry, where)
        except (ValueError, KeyError, TypeError):
            raise DatasetError(
                f'{where}: not of the form {{"file": "a.png", "caption": "..."}}'
            ) from None
        path = index.parent / str(file)
        if not path.resolve().is_relative_to(index.parent.resolve()):
            raise DatasetError(f"{where}: file {file} lies outside {index.parent}")
        if not path.is_file():
            raise DatasetError(f"{where}: file {file} does not exist in {index.parent}")
        found.append(Captioned(path, captions))
    return found


def _captions(entry: Mapping[str, object], where: str) -> dict[str, str]:
    """Raises KeyError: no `caption`; DatasetError: an empty one."""
    names = ["caption", *sorted(name for name in entry if _FURTHER.fullmatch(name))]
    return {name: _checked(str(entry[name]), f"{where}: {name}") for name in names}


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _sidecar(image: Path) -> dict[str, str]:
    several, one = image.with_suffix(".json"), image.with_suffix(".txt")
    if several.is_file():
        try:
            return _captions(json.loads(_text(several)), str(several))
        except (ValueError, KeyError, TypeError):
            raise DatasetError(f'{several}: not of the form {{"caption": "..."}}') from None
    if not one.is_file():
        raise DatasetError(
            f"{image} has no caption: write {one.name} or {several.name} beside it, or a {CAPTIONS}"
        )
    return {"caption": _checked(_text(one), str(one))}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def _checked(caption: str, where: str) -> str:
    words = " ".join(caption.split())
    if not words:
        raise DatasetError(f"{where}: the caption is empty")
    return words


def fitted(file: Path, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The image upright, in RGB, its centre at `(height, width, 3)`: scaled to cover that, and what
    sticks out cut away.

    Raises:
        UnreadableImageError, DatasetError: as `decoded`.
    """
    image = decoded(file, lambda opened: _on_white(ImageOps.exif_transpose(opened)))
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; where an image is transparent, what lies hidden in its pixels must not show."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")
