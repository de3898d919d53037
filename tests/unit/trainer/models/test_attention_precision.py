"""Attention in bf16 on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from daybreak_trainer.models.attention import attention


def test_bf16_on_a_cpu_is_rounded_once() -> None:
    """The result and the gradients are those of fp32, rounded to bf16."""
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 4, 6, 8, generator=generator).bfloat16() for _ in range(3)]
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., 4:] = False
    low = [x.clone().requires_grad_() for x in given]
    high = [x.float().requires_grad_() for x in given]
    found = attention(low[0], low[1], low[2], mask)
    exact = F.scaled_dot_product_attention(high[0], high[1], high[2], attn_mask=mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    weight = torch.randn(found.shape, generator=generator).bfloat16()
    (found * weight).sum().backward()
    (exact * weight.float()).sum().backward()
    for one, other in zip(low, high, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, rtol=1e-2, atol=1e-2)
