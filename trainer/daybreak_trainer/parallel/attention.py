"""Which kernel computes attention here: asked of torch's own dispatcher, and logged once.

The difference is large: a masked call that falls back to plain matrix products holds every score in
memory and takes several times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

from daybreak_trainer.telemetry import log


@dataclass(frozen=True)
class AttentionCall:
    """The shape of a call of `scaled_dot_product_attention`."""

    heads: int
    head_dim: int
    queries: int
    keys: int
    masked: bool
    """Whether a mask goes with it: the flash kernels take none."""


def backend(call: AttentionCall, device: torch.device, dtype: torch.dtype) -> str:
    """`flash_attention`, `efficient_attention`, `cudnn_attention` or `math`, as torch chooses for a
    call that is trained through."""
    shape = (1, call.heads, call.queries, call.head_dim)
    keys_shape = (1, call.heads, call.keys, call.head_dim)
    query = torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)
    key = torch.zeros(keys_shape, device=device, dtype=dtype, requires_grad=True)
    mask = None
    if call.masked:
        mask = torch.ones(1, 1, 1, call.keys, device=device, dtype=torch.bool)
        mask = mask.expand(1, call.heads, call.queries, call.keys)
    chosen = torch._fused_sdp_choice(query, key, key, mask)
    return SDPBackend(chosen).name.lower()


def log_backend(call: AttentionCall, device: torch.device, dtype: torch.dtype) -> str:
    """Logs `attention_backend_chosen`; returns the backend."""
    chosen = backend(call, device, dtype)
    log.event(
        "attention_backend_chosen",
        backend=chosen,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        heads=call.heads,
        head_dim=call.head_dim,
        queries=call.queries,
        keys=call.keys,
        masked=call.masked,
    )
    return chosen
