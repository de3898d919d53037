"""A folder of images with captions: `captions.jsonl`, or a `.txt` beside each image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.prepare.unreadable import decoded

CAPTIONS = "captions.jsonl"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class Captioned:
    file: Path
    caption: str


def read(folder: Path) -> list[Captioned]:
    """All images of a folder with their captions, in a fixed order.

    Raises:
        DatasetError: no images, a missing or empty caption, a line that is no JSON object with
            `file` and `caption`, or a line that names a missing file. The message names it.
    """
    index = folder / CAPTIONS
    found = _from_index(index) if index.is_file() else _from_sidecars(folder)
    if not found:
        raise DatasetError(
            f"{folder}: no images here; put {', '.join(sorted(SUFFIXES))} files with captions in "
            f"{CAPTIONS} or in a .txt beside each"
        )
    return found


def _from_index(index: Path) -> list[Captioned]:
    found = []
    for number, line in enumerate(_text(index).splitlines(), start=1):
        where = f"{index}:{number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, caption = entry["file"], entry["caption"]
        except (ValueError, KeyError, TypeError):
            raise DatasetError(
                f'{where}: not of the form {{"file": "a.png", "caption": "..."}}'
            ) from None
        path = index.parent / str(file)
        if not path.resolve().is_relative_to(index.parent.resolve()):
            raise DatasetError(f"{where}: file {file} lies outside {index.parent}")
        if not path.is_file():
            raise DatasetError(f"{where}: file {file} does not exist in {index.parent}")
        found.append(Captioned(path, _checked(str(caption), where)))
    return found


def _from_sidecars(folder: Path) -> list[Captioned]:
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        sidecar = path.with_suffix(".txt")
        if not sidecar.is_file():
            raise DatasetError(
                f"{path} has no caption: write {sidecar.name} beside it, or a {CAPTIONS}"
            )
        found.append(Captioned(path, _checked(_text(sidecar), str(sidecar))))
    return found


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
