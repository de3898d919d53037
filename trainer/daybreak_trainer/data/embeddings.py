"""How text embeddings lie in a dataset: one column for each of captions, without padding.

A value is `uint32 tokens`, then the hidden states `(tokens, width)`: as bf16, or as int8 after a
float32 scale for each token, its greatest magnitude over 127 (absmax quantisation, arXiv
2208.07339). The card says which, and of which encoder.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daybreak_trainer.data.card import Precision, TextEmbeddings

TEXT, SCALE = "text", "text_scale"
"""Names of a batch's tensors."""
ENCODING = "bytes"
"""Of the column, to MDS."""
_HEAD = struct.Struct("<I")
_SCALE_BYTES, _LEVELS = 4, 127


def column(caption: str) -> str:
    """The column of the embeddings of a column of captions."""
    return f"{caption}_embedding"


def encoded(hidden: Tensor, precision: Precision) -> bytes:
    """A caption's hidden states `(tokens, width)`, its real tokens alone, as a value."""
    head = _HEAD.pack(len(hidden))
    if precision == "bf16":
        return (
            head + hidden.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
        )
    values = hidden.to("cpu", torch.float32)
    scale = values.abs().amax(dim=1) / _LEVELS
    levels = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
    return head + scale.numpy().tobytes() + levels.to(torch.int8).numpy().tobytes()


def packed(
    values: Sequence[bytes], width: int, precision: Precision, *, pinned: bool = False
) -> tuple[Tensor, Tensor | None, npt.NDArray[np.int64]]:
    """Values of a batch side by side, padded with zeros to the longest: bf16 or int8 `(batch,
    tokens, width)`, the scales `(batch, tokens)` of the latter, and the tokens of each.

    Raises:
        ValueError: a value that is not of this width and precision.
    """
    lengths = np.array([_tokens(value, width, precision) for value in values], dtype=np.int64)
    shape = (len(values), int(lengths.max()), width)
    kind = torch.bfloat16 if precision == "bf16" else torch.int8
    text = torch.zeros(shape, dtype=kind, pin_memory=pinned)
    scale = None
    if precision == "8bit":
        scale = torch.zeros(shape[:2], pin_memory=pinned)
    memory = text.view(torch.uint8).numpy()
    for row, (value, tokens) in enumerate(zip(values, lengths.tolist(), strict=True)):
        start = _HEAD.size
        if not tokens:  # as the empty prompt of some tokenizers
            continue
        if scale is not None:
            scale.numpy()[row, :tokens] = np.frombuffer(value, "<f4", tokens, start)
            start += _SCALE_BYTES * tokens
        memory[row, :tokens] = np.frombuffer(value, np.uint8, offset=start).reshape(tokens, -1)
    return text, scale, lengths


def null_text(described: TextEmbeddings) -> Tensor:
    """Hidden states of the empty prompt, fp32 `(tokens, width)`."""
    value = base64.b64decode(described.null)
    text, scale, _ = packed([value], described.width, described.precision)
    return restored(text, scale, torch.float32)[0]


def restored(text: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Hidden states of a packed batch, `(batch, tokens, width)`."""
    if scale is None:
        return text.to(dtype)
    return (text.float() * scale[:, :, None]).to(dtype)


def _tokens(value: bytes, width: int, precision: Precision) -> int:
    if len(value) < _HEAD.size:
        raise ValueError("an embedding is too short")
    (tokens,) = _HEAD.unpack_from(value)
    size = 2 * width if precision == "bf16" else width + _SCALE_BYTES
    if len(value) != _HEAD.size + tokens * size:
        raise ValueError(
            f"an embedding of {tokens} tokens has {len(value)} bytes, not what {width} hidden "
            f"states of {precision} take"
        )
    return int(tokens)
