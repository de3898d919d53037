"""Writes samples into MDS shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from daybreak_trainer.data.card import INDEX

ImageEncoding = Literal["png", "jpeg"]
JPEG_QUALITY = 92
"""PRX part 4: what is trained on it is as good as with PNG, at a fraction of the bytes."""
SHARD_BYTES = 1 << 22
MOST_SHARD_BYTES = (1 << 32) - 1
"""MDS counts the bytes of a shard in 32 bits."""


@dataclass(frozen=True)
class Sample:
    """What becomes one row of the dataset."""

    image: npt.NDArray[np.uint8]
    """`(height, width, 3)`."""
    captions: Mapping[str, str]
    """By column; `caption` is among them."""
    name: str
    """Its id."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values of further columns, by name."""


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


def write(
    samples: Iterable[Sample], out: Path, form: ShardFormat, columns: Mapping[str, str]
) -> None:
    """Writes the shards and their `index.json`; `columns` has the MDS encoding of every column
    beside the image."""
    from streaming import MDSWriter

    columns = {"image": form.encoding, **columns}
    with MDSWriter(
        out=str(out), columns=dict(columns), hashes=["xxh64"], size_limit=form.shard_bytes
    ) as writer:
        for sample in samples:
            image = Image.fromarray(sample.image)
            if form.encoding == "jpeg":
                image = _Jpeg(image, form.jpeg_quality)
            row = {"image": image, **sample.captions, "id": sample.name, **sample.extra}
            writer.write(row)


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
