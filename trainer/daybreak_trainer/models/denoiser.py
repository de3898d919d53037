"""The denoiser: diffusers' PRX transformer in pixel space, under its own parameter names.

Being a subclass without new parameters, what it trains loads into stock
`diffusers.PRXTransformer2DModel`, with none of our code.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from torch import nn

from daybreak_trainer.models.attention import SmallMaskAttention
from daybreak_trainer.recipe.denoiser import Denoiser as DenoiserRecipe

CHANNELS = 3


class Denoiser(PRXTransformer2DModel):  # type: ignore[misc]
    """`(batch, 3, height, width)`, t in 0..1 `(batch,)`, text `(batch, tokens, hidden)` → image.

    The final projection starts at zero (adaLN-Zero, DiT, arXiv 2212.09748): diffusers starts the
    blocks' gates at zero but leaves the projection random.
    """

    def zero_final_layer(self) -> None:
        for linear in (self.final_layer.linear, self.final_layer.adaLN_modulation[-1]):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def units(self) -> list[nn.Module]:
        return list(self.blocks)


def build(recipe: DenoiserRecipe, text_hidden_size: int, seed: int) -> Denoiser:
    """A freshly initialised denoiser; equal for equal seeds, on every rank."""
    axis = recipe.hidden_size // recipe.heads // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Denoiser(
            in_channels=CHANNELS,
            patch_size=recipe.patch_size,
            context_in_dim=text_hidden_size,
            hidden_size=recipe.hidden_size,
            mlp_ratio=recipe.mlp_ratio,
            num_heads=recipe.heads,
            depth=recipe.depth,
            axes_dim=[axis, axis],
            bottleneck_size=recipe.bottleneck_size,
        )
        denoiser.zero_final_layer()
    denoiser.set_attn_processor(SmallMaskAttention())
    return denoiser
