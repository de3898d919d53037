"""Samples as files, for people: images as they are, and a labelled grid of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_TILE, _LABEL_HEIGHT, _MARGIN = 128, 34, 10
_PAPER, _INK = (250, 250, 248), (40, 40, 44)


def save_images(
    images: npt.NDArray[np.uint8], labels: Sequence[str], file: Path
) -> tuple[Path, ...]:
    """One image of `images` `(n, height, width, 3)` goes to `file`, as it is. Of several that is a
    grid, and beside it are the images, numbered; returns their paths."""
    if len(images) == 1:
        Image.fromarray(images[0]).save(file, format="PNG")
        return ()
    save_grid(images, labels, file)
    digits = len(str(len(images) - 1))
    paths = [file.with_stem(f"{file.stem}-{n:0{digits}d}") for n in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path, format="PNG")
    return tuple(paths)


def save_grid(
    images: npt.NDArray[np.uint8],
    labels: Sequence[str],
    file: Path | BinaryIO,
    columns: int = 6,
) -> None:
    """Writes `images` `(n, height, width, 3)` as a PNG, each over its label."""
    rows = -(-len(images) // columns)
    width = columns * (_TILE + _MARGIN) + _MARGIN
    height = rows * (_TILE + _LABEL_HEIGHT + _MARGIN) + _MARGIN
    page = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        left = _MARGIN + (number % columns) * (_TILE + _MARGIN)
        top = _MARGIN + (number // columns) * (_TILE + _LABEL_HEIGHT + _MARGIN)
        page.paste(_tile(pixels), (left, top))
        for line, text in enumerate(_wrapped(label, font, draw)[:2]):
            draw.text((left, top + _TILE + 2 + 15 * line), text, fill=_INK, font=font)
    page.save(file, format="PNG")


def _tile(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Small images with crisp pixels, large ones without what nearest neighbours would invent."""
    small = max(pixels.shape[:2]) <= _TILE
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((_TILE, _TILE), how)


def _wrapped(
    label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, draw: ImageDraw.ImageDraw
) -> list[str]:
    lines = [""]
    for word in label.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > _TILE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
