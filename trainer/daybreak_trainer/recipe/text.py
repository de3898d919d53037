"""Which captions are read, and what turns them into numbers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe.base import (
    Positive,
    PositiveInt,
    RecipeModel,
    Share,
    Source,
    heads_that_divide,
)

_FEWEST_PIECES = 320


class Caption(RecipeModel):
    """One of the captions that a sample has."""

    column: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        description="Its column in the dataset, such as caption or caption_short.",
    )
    weight: Positive = Field(description="How often it is drawn, relative to the others.")


class Text(RecipeModel):
    """The text tower. `joint` trains a small encoder and a tokenizer with the denoiser;
    `pretrained` freezes a Hugging Face encoder."""

    kind: Literal["joint", "pretrained"] = Field(
        description="Train a small encoder jointly, or load one."
    )
    path: Source | None = Field(
        default=None, description="pretrained: a local folder or a Hugging Face repository."
    )
    max_tokens: PositiveInt = Field(description="Captions are cut to this many tokens.")
    padding: Literal["max", "longest"] = Field(
        default="max",
        description="Captions are padded to maxTokens, or to the longest of the batch, rounded up "
        "to a multiple of paddingMultiple. The result does not depend on it, the cost does.",
    )
    padding_multiple: PositiveInt = Field(
        default=16, description="longest: few lengths mean few shapes to compile."
    )
    length_buckets: bool = Field(
        default=False,
        description="longest: the captions of a step are sorted by length before they are dealt "
        "out to passes, so that short ones are not padded to the longest of the whole batch.",
    )
    precomputed: bool = Field(
        default=False,
        description="pretrained: read the embeddings that `daybreak prepare --embeddings` wrote, "
        "unpadded; false encodes captions in every step.",
    )
    hidden_size: PositiveInt | None = Field(
        default=None, description="joint: width of the encoder."
    )
    depth: PositiveInt | None = Field(default=None, description="joint: number of layers.")
    heads: PositiveInt | None = Field(default=None, description="joint: attention heads.")
    vocabulary: Literal["words", "pieces"] = Field(
        default="words",
        description="joint: one token a word of the captions, or byte-pair pieces learned from "
        "them (arXiv 1508.07909), which no caption lies outside of.",
    )
    vocabulary_size: PositiveInt | None = Field(
        default=None, description="joint, pieces: most tokens, such as 4096."
    )
    captions: tuple[Caption, ...] = Field(
        default=(Caption(column="caption", weight=1.0),),
        min_length=1,
        max_length=16,
        description="Captions of a sample that are drawn from, by weight: long and short ones, or "
        "those of several captioners. A sample draws anew in every epoch.",
    )
    caption_dropout: Share = Field(
        description="Share of captions replaced by the empty prompt, for classifier-free guidance "
        "(arXiv 2207.12598)."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "pretrained":
            if not self.path:
                raise ValueError(
                    "kind: pretrained needs path, a local folder or a Hugging Face repository"
                )
            return self
        if self.path:
            raise ValueError(
                "kind: joint trains its own encoder and takes no path; set path: null, or "
                "kind: pretrained"
            )
        if self.precomputed:
            raise ValueError("precomputed needs kind: pretrained; a joint encoder changes")
        if not (self.hidden_size and self.depth and self.heads):
            raise ValueError("kind: joint needs hiddenSize, depth and heads")
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads ({self.heads}) must divide hiddenSize ({self.hidden_size}): take "
                + heads_that_divide(self.hidden_size, self.heads)
            )
        if self.vocabulary == "pieces" and (self.vocabulary_size or 0) < _FEWEST_PIECES:
            raise ValueError(
                f"vocabulary: pieces needs vocabularySize, at least {_FEWEST_PIECES} (256 bytes, "
                "and something to make of them), such as 4096"
            )
        return self

    @model_validator(mode="after")
    def _can_pad(self) -> Self:
        if self.padding == "longest" and self.padding_multiple > self.max_tokens:
            raise ValueError(
                f"paddingMultiple ({self.padding_multiple}) is above maxTokens "
                f"({self.max_tokens}), so every length would be "
                "maxTokens; lower it, or set padding to max"
            )
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = [caption.column for caption in self.captions]
        if len(set(columns)) < len(columns):
            raise ValueError(f"captions: a column stands twice among {', '.join(columns)}")
        return self
