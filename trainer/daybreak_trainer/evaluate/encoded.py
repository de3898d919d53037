"""Prompts of an evaluation through a frozen encoder, each once in a process.

Where training reads embeddings that were made before, the encoder lies on the host, and the prompts
of all evaluations are the same: captions of the held-out samples, the run's prompts, the
benchmark's. They are encoded where the rank computes and kept as hidden states on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from daybreak_trainer.models.encoding import encode
from daybreak_trainer.models.pretrained import copied
from daybreak_trainer.models.text import TextTower

_ROWS = 32
"""Of a pass."""


class EncodedPrompts:
    """Stands in for the tower where its prompts are known (`TextTower.condition`).

    Keeps `tokens * hidden size` numbers of `dtype` a prompt on the host: 256 captions of 200 tokens
    by an encoder of width 2,304 are 0.2 GB in bf16, over all ranks.
    """

    def __init__(self, tower: TextTower, device: torch.device, dtype: torch.dtype) -> None:
        """`tower` is frozen; `dtype` is the step's."""
        self._tower, self._device, self._dtype = tower, device, dtype
        self._known: dict[str, Tensor] = {}

    def hold(self, prompts: Iterable[str], moved: Callable[[int], None]) -> None:
        """Encodes those that are not known yet, and forgets all others. A collective, for `moved`
        may be one: every rank calls it equally often, with how many passes are done.

        On a GPU the encoder's weights are copied to it in the step's precision, as embeddings of
        data are made, and are gone from there when this returns: those on the host stay as they
        are, for the export.
        """
        wanted = dict.fromkeys(prompts)
        self._known = {text: self._known[text] for text in wanted if text in self._known}
        # Alike ones together: little is computed for padding.
        new = sorted((text for text in wanted if text not in self._known), key=len)
        passes = torch.tensor(-(-len(new) // _ROWS))
        dist.all_reduce(passes, dist.ReduceOp.MAX)
        encoder = self._here() if new else None
        for number in range(int(passes)):
            part = new[number * _ROWS : (number + 1) * _ROWS]
            if part and encoder is not None:
                self._known.update(zip(part, self._encoded(encoder, part), strict=True))
            moved(number + 1)

    def condition(
        self, captions: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """As `TextTower.condition`, of prompts that are held; hidden states of padding are zero.

        Raises:
            KeyError: a prompt is not held.
        """
        rows = [self._known[text] for text in captions]
        tokens = self._tower.padding.length(max(len(row) for row in rows))
        hidden = torch.zeros(len(rows), tokens, self._tower.hidden_size, dtype=self._dtype)
        mask = torch.zeros(len(rows), tokens, dtype=torch.bool)
        for number, row in enumerate(rows):
            hidden[number, : len(row)] = row
            mask[number, : len(row)] = True
        return {"mask": mask.to(device), "text": hidden.to(device, dtype)}

    def _here(self) -> Callable[..., Any]:
        """The encoder with copies of its weights on this device; on the CPU, with its own."""
        encoder: nn.Module = self._tower.encoder
        if self._device.type != "cuda":
            return encoder
        return copied(encoder, self._device, self._dtype)

    @torch.no_grad()
    def _encoded(self, encoder: Callable[..., Any], prompts: list[str]) -> list[Tensor]:
        """Hidden states of each prompt's own tokens, `(tokens, hidden)`, on the host."""
        ids, mask = self._tower.tokenize(prompts, self._device)
        hidden = encode(encoder, ids, mask, self._tower.mask_form).to("cpu", self._dtype)
        lengths = mask.sum(dim=1).tolist()
        return [row[:length].clone() for row, length in zip(hidden, lengths, strict=True)]
