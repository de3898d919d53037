"""Writes samples into MDS shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from daybreak_trainer.data.card import INDEX

Rendered = tuple[npt.NDArray[np.uint8], str, str]
"""Image `(height, width, 3)`, caption, id."""
ImageEncoding = Literal["png", "jpeg"]
JPEG_QUALITY = 92
"""PRX part 4: what is trained on it is as good as with PNG, at a fraction of the bytes."""
SHARD_BYTES = 1 << 22
MOST_SHARD_BYTES = (1 << 32) - 1
"""MDS counts the bytes of a shard in 32 bits."""


@dataclass(frozen=True)
class ShardFormat:
    """How samples are stored."""

    encoding: ImageEncoding
    jpeg_quality: int
    shard_bytes: int
    """A shard ends before it would grow beyond this."""


class _Jpeg(Image.Image):
    """MDSWriter asks an image to save itself and says no quality; this one has its own."""

    def __init__(self, image: Image.Image, quality: int) -> None:
        super().__init__()
        self._image, self._quality = image, quality

    def save(self, fp: Any, format: str | None = None, **_: Any) -> None:  # noqa: A002 (PIL's)
        self._image.save(fp, format, quality=self._quality)


def write(samples: Iterable[Rendered], out: Path, form: ShardFormat) -> None:
    """Writes the shards and their `index.json`."""
    from streaming import MDSWriter

    columns: dict[str, Any] = {"image": form.encoding, "caption": "str", "id": "str"}
    with MDSWriter(
        out=str(out), columns=columns, hashes=["xxh64"], size_limit=form.shard_bytes
    ) as writer:
        for pixels, caption, name in samples:
            image = Image.fromarray(pixels)
            if form.encoding == "jpeg":
                image = _Jpeg(image, form.jpeg_quality)
            writer.write({"image": image, "caption": caption, "id": name})


def moved(part: Path, out: Path, first: int) -> list[dict[str, Any]]:
    """Moves the shards of one bucket to the dataset, numbered from `first`; what the index is to
    say of them."""
    infos: list[dict[str, Any]] = json.loads((part / INDEX).read_text())["shards"]
    for number, info in enumerate(infos, start=first):
        name = f"shard.{number:05d}.mds"
        (part / info["raw_data"]["basename"]).rename(out / name)
        info["raw_data"]["basename"] = name
    shutil.rmtree(part)
    return infos
