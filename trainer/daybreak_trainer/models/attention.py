"""Attention of image tokens over text and image, with the text's mask kept small.

diffusers' own processor spells the mask out for every head and query, and torch then makes a bias
of that size, which each block keeps for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_prx import PRXAttention, apply_rope
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot products of `(batch, heads, tokens, head_dim)`, in the inputs' precision; on a CPU
    in fp32, for torch's backward pass of its fused kernel takes sixteen times as long in bf16."""
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        query, key, value = query.float(), key.float(), value.float()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).to(dtype)


class SmallMaskAttention:
    """A PRX attention processor: the stock one's numbers, with a mask `(batch, 1, 1, keys)`."""

    def __call__(
        self,
        attn: PRXAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """`(batch, tokens, hidden)`; `attention_mask` is the text's, `(batch, text tokens)`."""

        def split(packed: Tensor, parts: int) -> tuple[Tensor, ...]:
            """`parts` of `(batch, heads, tokens, head_dim)`."""
            apart = packed.view(*packed.shape[:2], parts, attn.heads, attn.head_dim)
            return tuple(apart.permute(2, 0, 3, 1, 4))

        query, image_key, image_value = split(attn.img_qkv_proj(hidden_states), 3)
        text_key, text_value = split(attn.txt_kv_proj(encoder_hidden_states), 2)
        query, image_key = attn.norm_q(query), attn.norm_k(image_key)
        if image_rotary_emb is not None:
            query = apply_rope(query, image_rotary_emb)
            image_key = apply_rope(image_key, image_rotary_emb)
        key = torch.cat((attn.norm_added_k(text_key), image_key), dim=2)
        value = torch.cat((text_value, image_value), dim=2)
        mask = None
        if attention_mask is not None:
            tokens = query.shape[2]
            mask = F.pad(attention_mask.bool(), (0, tokens), value=True)[:, None, None, :]
        mixed = attention(query, key, value, mask)
        out: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        dropped: Tensor = attn.to_out[1](out)
        return dropped
