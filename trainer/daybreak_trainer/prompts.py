"""A rank's captions of one step, as the model takes them.

How long a caption is, is known on the host before anything is sent to the device, so passes are cut
to their own longest caption and no step waits. The empty prompt, which takes the place of captions
that are dropped, is encoded once by a frozen encoder, and is the one that sampling is guided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from daybreak_trainer.data.embeddings import SCALE, TEXT, restored
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.parallel.microbatch import Pass, row_numbers, rows
from daybreak_trainer.recipe.text import Text


class CaptionedBatch(Protocol):
    """What is read of a batch; it is a dataclass."""

    @property
    def positions(self) -> npt.NDArray[np.int64]: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def captions(self) -> tuple[str, ...]: ...


Batch = TypeVar("Batch", bound=CaptionedBatch)
Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Conditioning:
    """Of a pass, for `TextToImage.forward`."""

    mask: Tensor
    """Bool `(rows, tokens)`."""
    input_ids: Tensor | None = None
    """`(rows, tokens)`, where the encoder is trained."""
    text: Tensor | None = None
    """`(rows, tokens, hidden)`, where it is frozen."""


class PromptReader:
    def __init__(
        self,
        recipe: Text,
        tower: TextTower,
        device: torch.device,
        dtype: torch.dtype,
        null: Tensor | None = None,
    ) -> None:
        """`null` is the empty prompt `(tokens, hidden)` that came with precomputed embeddings; what
        is not precomputed encodes its own."""
        self._recipe, self.tower, self.device, self.dtype = recipe, tower, device, dtype
        ids, mask = tower.tokenize([""], torch.device("cpu"))
        tokens = int(mask.sum())
        self.null_ids = self.sent(ids[:, :tokens])
        self.null_text: Tensor | None = None
        if not tower.trained:
            if null is None:
                hidden, _ = tower.embed([""])
                null = hidden[0, :tokens]
            self.null_text = null.to(device, dtype)[None]
            tokens = len(null)
        self.null_tokens = tokens

    def read(self, batch: Batch, passes: int) -> tuple[Batch, Prompts]:
        """The batch in the order in which it is dealt to passes, and its captions."""
        if self._recipe.precomputed:
            lengths = cast(Any, batch).text_lengths
            if (order := self._order(lengths, passes)) is not None:
                batch, lengths = _reordered(batch, order), lengths[order]
            text, scale = batch.tensors[TEXT].to(self.device), batch.tensors.get(SCALE)
            text = restored(text, None if scale is None else scale.to(self.device), self.dtype)
            rest = {n: t for n, t in batch.tensors.items() if n not in (TEXT, SCALE)}
            batch = cast(Batch, replace(cast(Any, batch), tensors=rest))
            return batch, Prompts(self, lengths, text=text)
        ids, mask = self.tower.tokenize(batch.captions, torch.device("cpu"))
        lengths = mask.sum(dim=1).numpy()
        if (order := self._order(lengths, passes)) is not None:
            batch, lengths, ids = _reordered(batch, order), lengths[order], ids[order]
        return batch, Prompts(self, lengths, ids=self.sent(ids))

    def nothing(self, tokens: int) -> Prompts:
        """One caption of so many tokens, for a rehearsal."""
        lengths = np.array([tokens], dtype=np.int64)
        if self._recipe.precomputed:
            text = torch.zeros(1, tokens, self.tower.hidden_size, dtype=self.dtype)
            return Prompts(self, lengths, text=text.to(self.device))
        return Prompts(self, lengths, ids=torch.zeros(1, tokens, dtype=torch.int64).to(self.device))

    def sent(self, values: Tensor) -> Tensor:
        """On the device; from pinned memory alone a copy does not wait for the step before."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values

    def _order(self, lengths: Lengths, passes: int) -> Lengths | None:
        """Captions by length; None: as they are."""
        if not self._recipe.length_buckets or passes == 1:
            return None
        return np.argsort(lengths, kind="stable")


class Prompts:
    """The captions of a batch on the device: token ids, or the embeddings that came with it."""

    def __init__(
        self,
        reader: PromptReader,
        lengths: Lengths,
        *,
        ids: Tensor | None = None,
        text: Tensor | None = None,
    ) -> None:
        """`lengths` has the tokens of each caption, `(batch,)`, on the host."""
        self._reader, self._lengths = reader, lengths
        self._ids, self._text = ids, text
        self._tokens = reader.sent(torch.from_numpy(np.ascontiguousarray(lengths)))

    def conditioning(self, part: Pass, dropped: Tensor) -> Conditioning:
        """Of a pass; captions of `dropped` `(rows,)` become the empty prompt."""
        reader = self._reader
        longest = self._lengths[row_numbers(len(self._lengths), part)].max()
        length = reader.tower.padding.length(max(int(longest), reader.null_tokens))
        places = torch.arange(length, device=reader.device)
        own = places < rows(self._tokens, part)[:, None]
        drop = dropped[:, None]
        mask = torch.where(drop, places < reader.null_tokens, own)
        if reader.tower.trained:
            assert self._ids is not None  # a trained encoder's captions are not precomputed
            ids = torch.where(
                drop, _fit(reader.null_ids, length), _fit(rows(self._ids, part), length)
            )
            return Conditioning(mask, input_ids=ids)
        if self._text is not None:
            text = _fit(rows(self._text, part), length)
        else:
            assert self._ids is not None
            text = reader.tower.encode(_fit(rows(self._ids, part), length), own).to(reader.dtype)
        assert reader.null_text is not None  # of every frozen encoder
        text = torch.where(drop[:, :, None], _fit(reader.null_text, length), text)
        return Conditioning(mask, text=text)


def _fit(values: Tensor, length: int) -> Tensor:
    """`(batch, tokens, ...)` cut or padded with zeros to `length` tokens. What pads token ids is no
    matter: it is masked."""
    missing = length - values.shape[1]
    if missing <= 0:
        return values[:, :length]
    return F.pad(values, (*[0, 0] * (values.ndim - 2), 0, missing))


def _reordered(batch: Batch, order: Lengths) -> Batch:
    """Everything of the batch goes along."""
    captions = tuple(batch.captions[number] for number in order)
    tensors = {}
    for name, tensor in batch.tensors.items():
        index = torch.from_numpy(order)
        if tensor.device.type == "cuda":
            index = index.pin_memory().to(tensor.device, non_blocking=True)
        tensors[name] = tensor.index_select(0, index)
    changed = replace(
        cast(Any, batch), positions=batch.positions[order], tensors=tensors, captions=captions
    )
    return cast(Batch, changed)
