"""FLOPs of one sample from an architecture's formula: what MFU and HFU are counted in.

A multiply and an add are two FLOPs; only matrix products count, attention without a causal half.
Tests hold each formula to PyTorch's own counter, forward; its backward is not used, for it counts
some convolutions several times over. A backward pass costs twice the forward one, so training costs
three. `6 · parameters · tokens` would be 17 to 38 % too much for a denoiser with adaLN, whose
modulation matrices see one vector a sample and not every token (DiT, arXiv 2212.09748).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.denoiser import Denoiser

CHANNELS = 3
_TIME_FEATURES = 256
"""Width of the sinusoidal timestep features (diffusers' PRX)."""
_BACKWARD_AND_FORWARD = 3

Checkpointing = Literal["none", "blocks", "budget"]


@dataclass(frozen=True)
class SampleFlops:
    """Forward FLOPs of one sample."""

    trained: float
    """Of everything that gets a gradient."""
    blocks: float
    """Of the denoiser's blocks, which are part of it."""
    frozen: float
    """Of frozen encoders, which run forward only."""

    @property
    def model(self) -> float:
        """What a training step needs: the count of MFU."""
        return _BACKWARD_AND_FORWARD * self.trained

    def hardware(self, checkpointing: Checkpointing) -> float | None:
        """What a training step computes, blocks that are computed again included: the count of
        HFU. None with a memory budget, where the compiler decides how much that is."""
        if checkpointing == "budget":
            return None
        return self.model + (self.blocks if checkpointing == "blocks" else 0.0)

    def device(self, checkpointing: Checkpointing) -> float | None:
        """Everything that the device computes for a sample, frozen encoders included."""
        hardware = self.hardware(checkpointing)
        return None if hardware is None else hardware + self.frozen


@dataclass(frozen=True)
class _Forward:
    whole: float
    blocks: float


def per_sample(
    recipe: Recipe,
    *,
    height: int,
    width: int,
    text_width: int | None = None,
    frozen_text: float = 0.0,
) -> SampleFlops:
    """FLOPs of a recipe's sample of `height` × `width` pixels, its caption padded to the recipe's
    tokens.

    `text_width` is the width of the encoder's hidden states and `frozen_text` the FLOPs of its
    forward pass (`counted`), both where the encoder is a pretrained one.
    """
    text = recipe.text
    tokens = text.max_tokens
    encoder = 0.0
    if text.kind == "joint":
        assert text.hidden_size is not None  # the recipe's own rule, as the next
        assert text.depth is not None
        text_width = text.hidden_size
        encoder = distilbert(width=text.hidden_size, depth=text.depth, tokens=tokens)
    assert text_width is not None, "a pretrained encoder's width is not in the recipe"
    denoiser = _DENOISERS[recipe.denoiser.kind](recipe.denoiser, height, width, tokens, text_width)
    return SampleFlops(trained=denoiser.whole + encoder, blocks=denoiser.blocks, frozen=frozen_text)


def prx(recipe: Denoiser, height: int, width: int, text_tokens: int, text_width: int) -> _Forward:
    """Forward of `diffusers.PRXTransformer2DModel` in pixel space. With d its width, T image and S
    text tokens, m the MLP's width:

        block = 2T·4d² + 2T·3dm + 2S·2d² + 4dT(T+S) + 2·6d²
                qkv, out   MLP     text k,v  attention  modulation, once a sample
    """
    d, tokens = recipe.hidden_size, (height // recipe.patch_size) * (width // recipe.patch_size)
    patch = CHANNELS * recipe.patch_size**2
    mlp = int(d * recipe.mlp_ratio)
    block = (
        2 * tokens * 4 * d * d
        + 2 * tokens * 3 * d * mlp
        + 2 * text_tokens * 2 * d * d
        + 4 * d * tokens * (tokens + text_tokens)
        + 2 * 6 * d * d
    )
    bottleneck = recipe.bottleneck_size
    patch_in = patch * d if bottleneck is None else bottleneck * (patch + d)
    edges = (
        2 * tokens * patch_in
        + 2 * text_tokens * text_width * d
        + 2 * (_TIME_FEATURES * d + d * d)
        + 2 * tokens * d * patch
        + 2 * 2 * d * d  # the last layer's modulation
    )
    blocks = float(recipe.depth * block)
    return _Forward(blocks + edges, blocks)


def distilbert(*, width: int, depth: int, tokens: int) -> float:
    """Forward of the joint text encoder: four projections, attention, an MLP four times as wide."""
    layer = 2 * tokens * 4 * width**2 + 4 * width * tokens**2 + 2 * tokens * 8 * width**2
    return float(depth * layer)


def counted(forward: Callable[[], object]) -> float:
    """FLOPs of a forward pass as PyTorch counts them while it runs: for a frozen encoder, which may
    be of any architecture. Attention is spelt out: the counter does not know a CPU's kernels."""
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), attention, FlopCounterMode(display=False) as counter:
        forward()
    return float(counter.get_total_flops())


_DENOISERS = {"prx": prx}
"""By `recipe.denoiser.kind`; another architecture is one more function."""
