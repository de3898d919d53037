"""One forward pass of a text encoder, without the host reading a value of the device.

transformers looks into the padding mask of many decoders to see whether it can do without one, and
the host would wait for the step before at every pass. Such an encoder gets its attention mask spelt
out, `(batch, 1, tokens, tokens)`, which transformers takes as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

MaskForm = Literal["padding", "causal", "full"]
"""padding: `(batch, tokens)`, as transformers has it; causal and full: spelt out, with tokens
attending to those before them or to all."""
_ROWS, _TOKENS = 2, 8
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of hidden states, over their size; another form of the mask makes them others altogether."""


def encode(
    encoder: Callable[..., Any], input_ids: Tensor, mask: Tensor, form: MaskForm = "padding"
) -> Tensor:
    """Hidden states of the captions, `(batch, tokens, hidden)`; ids and `mask`, which is True at
    real tokens, are `(batch, tokens)`. `encoder` is a module, or calls one."""
    attended = mask if form == "padding" else _spelt_out(mask, causal=form == "causal")
    hidden: Tensor = encoder(input_ids=input_ids, attention_mask=attended)["last_hidden_state"]
    return hidden


def _spelt_out(mask: Tensor, *, causal: bool) -> Tensor:
    """Bool `(batch, 1, tokens, tokens)`. Every token attends to itself at least: a row of nothing,
    as padding would have in an empty prompt, has no softmax."""
    tokens = mask.shape[1]
    seen = mask[:, None, None, :].expand(-1, 1, tokens, tokens)
    places = torch.arange(tokens, device=mask.device)
    if causal:
        seen = seen & (places[None, :] <= places[:, None])
    return seen | (places[None, :] == places[:, None])


def form_without_reads(encoder: nn.Module, max_tokens: int) -> MaskForm:
    """The form with which the host reads nothing, of those that give the encoder's own hidden
    states; `padding` where there is none, which costs a wait at every pass.

    `encoder` is on the CPU.
    """
    tokens = min(_TOKENS, max_tokens)
    ids = torch.arange(_ROWS * tokens).view(_ROWS, tokens) % 3
    mask = torch.ones(_ROWS, tokens, dtype=torch.bool)
    mask[1, tokens // 2 :] = False
    with _Reads() as reads:
        wanted = encode(encoder, ids, mask)
    if not reads.seen or _has_windows(encoder, max_tokens):
        return "padding"
    forms: tuple[MaskForm, ...] = ("causal", "full")
    for form in forms:
        try:
            got = encode(encoder, ids, mask, form)
        except (RuntimeError, ValueError, TypeError):  # it takes no such mask
            continue
        apart = (got[mask] - wanted[mask]).float().norm()
        if apart <= _ROUNDING[got.dtype] * wanted[mask].float().norm():
            return form
    return "padding"


def _has_windows(encoder: Any, max_tokens: int) -> bool:
    """Whether tokens of some layers attend to their neighbours alone: one mask is not enough."""
    config = encoder.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    return window is not None and window <= max_tokens


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a value was read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.data_dependent_output in func.tags
        return func(*args, **(kwargs or {}))
