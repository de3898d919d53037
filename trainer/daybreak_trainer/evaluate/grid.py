"""A labelled grid of samples, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_TILE, _LABEL_HEIGHT, _MARGIN = 128, 34, 10
_PAPER, _INK = (250, 250, 248), (40, 40, 44)


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
        tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.NEAREST)
        page.paste(tile, (left, top))
        for line, text in enumerate(_wrapped(label, font, draw)[:2]):
            draw.text((left, top + _TILE + 2 + 15 * line), text, fill=_INK, font=font)
    page.save(file, format="PNG")


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
