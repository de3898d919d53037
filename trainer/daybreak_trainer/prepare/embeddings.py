"""Columns of text embeddings: captions through a frozen encoder, once and for all.

Stored without padding (`data/embeddings.py`). Captions of a shard are encoded in the order of their
length, so that little is computed for padding; a caption's values depend on its shard alone, and
work that is stopped and gone on with writes the same ones.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from daybreak_trainer.data.card import Precision, TextEmbeddings
from daybreak_trainer.data.embeddings import ENCODING, column, encoded
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.pretrained import checksum, placed
from daybreak_trainer.models.pretrained_text import tokenizer_checksum
from daybreak_trainer.models.text import TextTower, pretrained
from daybreak_trainer.prepare.rewrite import Row, SampleError

_ROWS = 32
"""Of a pass."""
_MULTIPLE = 8
OPTION = "--embeddings"


class Embedder:
    """A frozen encoder on a GPU in bf16, where there is one, else on the CPU in fp32."""

    def __init__(
        self, path: str, max_tokens: int, precision: Precision, *, lower_case: bool = False
    ) -> None:
        """With `lower_case` captions are put into it first, as `SanaPipeline` does with prompts.

        Raises:
            RecipeError, HubUnreachableError: the encoder cannot be loaded.
        """
        multiple = min(_MULTIPLE, max_tokens)
        self._tower: TextTower = pretrained(
            path, Padding(max_tokens, multiple), OPTION, lower_case=lower_case
        )
        encoder = self._tower.encoder
        digest = checksum(encoder)  # of the weights as they are, in whatever precision they compute
        if torch.cuda.is_available():
            placed(encoder, torch.device("cuda"), torch.bfloat16)
        self._precision = precision
        self.captions = self.tokens = self.bytes = 0
        """Embedded so far."""
        (null,) = self._pass([""])
        self.described = TextEmbeddings(
            encoder=path,
            checksum=digest,
            tokenizer=tokenizer_checksum(self._tower.tokenizer),
            max_tokens=max_tokens,
            width=self._tower.hidden_size,
            precision=precision,
            lower_case=lower_case,
            null=base64.b64encode(null).decode(),
        )

    def values(self, captions: Sequence[str]) -> list[bytes]:
        """As they are stored, one for each caption.

        Raises:
            SampleError: an embedding is not finite.
        """
        order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
        found = [b""] * len(captions)
        for start in range(0, len(order), _ROWS):
            places = order[start : start + _ROWS]
            try:
                values = self._pass([captions[place] for place in places])
            except SampleError as error:
                raise SampleError(places[error.row], str(error)) from None
            for place, value in zip(places, values, strict=True):
                found[place] = value
        self.captions += len(found)
        self.bytes += sum(map(len, found))
        return found

    def _pass(self, captions: list[str]) -> list[bytes]:
        hidden, mask = self._tower.embed(captions)
        lengths = mask.sum(dim=1).tolist()
        self.tokens += sum(lengths) if captions != [""] else 0
        values = []
        for row, (states, length) in enumerate(zip(hidden.cpu(), lengths, strict=True)):
            if not torch.isfinite(states[:length]).all():
                raise SampleError(row, "the embedding of its caption is not finite")
            values.append(encoded(states[:length], self._precision))
        return values


class EmbeddingColumn:
    """See `rewrite.NewColumn`; of one column of captions."""

    def __init__(self, embedder: Embedder, caption: str) -> None:
        self.name, self._embedder, self._caption = column(caption), embedder, caption

    def identity(self) -> Mapping[str, Any]:
        return self._embedder.described.model_dump(mode="json", exclude={"encoder", "null"})

    def record(self) -> dict[str, Any]:
        return {"embeddings": self._embedder.described}

    def encoding(self, size: tuple[int, int]) -> str:
        return ENCODING

    def values(
        self, rows: Sequence[Row], encodings: Mapping[str, str], size: tuple[int, int]
    ) -> Iterator[bytes]:
        """See `rewrite.NewColumn`."""
        if encodings.get(self._caption) != "str":
            raise DatasetError(f"there are no captions {self._caption} to make embeddings of")
        yield from self._embedder.values([row[self._caption].decode() for row in rows])
