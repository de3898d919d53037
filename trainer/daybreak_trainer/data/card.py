"""`dataset.json`, and the names of the files that make a folder of shards a dataset."""

from __future__ import annotations

from pydantic import Field

from daybreak_trainer.contract import Message

INDEX = "index.json"
CARD = "dataset.json"
SKIP = "skip.json"
"""`{"<shard's file>": [numbers of samples in it]}`: samples that are never trained on."""


class DatasetCard(Message):
    """`dataset.json`: where a dataset comes from, and what a trainer must know of it at once."""

    source: str
    samples: int
    resolution: int
    seed: int
    licence: str
    vocabulary: tuple[str, ...] = ()
    buckets: dict[str, tuple[str, ...]] | None = Field(
        default=None,
        description="Shards of each aspect-ratio bucket `HxW` (pixels); absent: all are square.",
    )


def bucket_name(height: int, width: int) -> str:
    return f"{height}x{width}"


def bucket_size(name: str) -> tuple[int, int]:
    """Height and width in pixels of a bucket `HxW`.

    Raises:
        ValueError: not of that form.
    """
    height, separator, width = name.partition("x")
    if not (separator and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"bucket {name!r} is not of the form HEIGHTxWIDTH")
    return int(height), int(width)
