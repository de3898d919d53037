"""`dataset.json`, and the names of the files that make a folder of shards a dataset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from daybreak_trainer.contract import Message
from daybreak_trainer.data.latents import LatentSpace

INDEX = "index.json"
CARD = "dataset.json"
SKIP = "skip.json"
"""`{"<shard's file>": [numbers of samples in it]}`: samples that are never trained on."""


Precision = Literal["bf16", "8bit"]


class TextEmbeddings(Message):
    """What a dataset's card says of its embeddings."""

    encoder: str
    """Folder or repository that they were made with."""
    checksum: str
    """Of the encoder's weights (`models.pretrained.checksum`)."""
    tokenizer: str | None = None
    """Of its tokenizer (`models.pretrained_text.tokenizer_checksum`); data that was prepared before
    this was noted has none, and is taken on the weights alone."""
    max_tokens: int
    width: int
    precision: Precision
    lower_case: bool = False
    """Whether captions were put into lower case and stripped first."""
    null: str = Field(description="The empty prompt's, base64 of a value as in the columns.")


class DatasetCard(Message):
    """`dataset.json`: where a dataset comes from, and what a trainer must know of it at once."""

    source: str
    samples: int
    resolution: int
    seed: int
    licence: str
    vocabulary: tuple[str, ...] = Field(
        default=(), description="Words of the captions, sorted: all, or the most frequent 65,536."
    )
    word_counts: tuple[int, ...] = Field(
        default=(), description="How often each stands in them; what pieces are learned from."
    )
    caption_sample: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Some captions of each column, evenly out of all: they say how long captions "
        "are before a shard is read.",
    )
    latents: LatentSpace | None = Field(
        default=None, description="What made the column `latent`; absent: there is none."
    )
    embeddings: TextEmbeddings | None = Field(
        default=None, description="Of the captions, where the dataset has them."
    )
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
