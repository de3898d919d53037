"""Sana: diffusers' transformer with linear attention over the image and cross-attention to the text
(arXiv 2410.10629), under its own parameter names. Places are known from the convolutions alone.

Sampling: `SanaPipeline` feeds t · 1000, the text with its mask, and takes the output for the
velocity `noise - data`, which is `objective.prediction: v`. diffusers has no pipeline for Sana
without an autoencoder; there the exported transformer is called as that pipeline calls it, with
Euler steps of `FlowMatchEulerDiscreteScheduler` on pixels in -1..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.transformers.sana_transformer import (
    SanaTransformer2DModel,
    SanaTransformerBlock,
)
from torch import Tensor, nn

from daybreak_trainer.models.attention import attention
from daybreak_trainer.models.initialisation import mup_factor, start, zero, zero_modulation
from daybreak_trainer.models.tricks import gather, spread
from daybreak_trainer.recipe import Recipe

_TIME_FACTOR = 1000.0


@dataclass(frozen=True)
class SanaContext:
    """What the blocks share; see `family.Context`."""

    grid: tuple[int, int]
    text: Tensor
    """`(batch, text tokens, hidden)`."""
    mask: Tensor
    """Bool `(batch, 1, 1, text tokens)`."""
    timestep: Tensor
    """Its embedding, `(batch, hidden)`."""
    modulation: Tensor
    """`(batch, 6 · hidden)`."""
    visible: Tensor | None = None

    def at(self, visible: Tensor) -> SanaContext:
        return replace(self, visible=visible)


class CrossAttention:
    """A processor of diffusers' `Attention`: the stock one's numbers, with the mask kept small."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """`(batch, tokens, hidden)`; `attention_mask` is `(batch, 1, 1, text tokens)`."""
        stock = cast("_Attention", attn)

        def split(packed: Tensor) -> Tensor:
            return packed.reshape(*packed.shape[:2], stock.heads, -1).transpose(1, 2)

        query = split(stock.norm_q(stock.to_q(hidden_states)))
        key = split(stock.norm_k(stock.to_k(encoder_hidden_states)))
        value = split(stock.to_v(encoder_hidden_states))
        mixed = attention(query, key, value, attention_mask)
        out: Tensor = stock.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out


class _Attention(nn.Module):
    """The parts of diffusers' `Attention` that are used here."""

    heads: int
    norm_q: nn.Module
    norm_k: nn.Module
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList


class SanaBlock(SanaTransformerBlock):  # type: ignore[misc]
    """Stock Sana's block, which knows what to do where tokens are missing: to the convolution over
    their neighbours they are zero, as what lies outside of the image is."""

    def forward(self, tokens: Tensor, context: SanaContext) -> Tensor:
        table, given = self.scale_shift_table[None], context.modulation
        modulation = table + given.reshape(len(given), 6, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=1)
        modulated = self.norm1(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self.attn1(modulated)
        tokens = tokens + self.attn2(
            tokens, encoder_hidden_states=context.text, attention_mask=context.mask
        )
        modulated = self.norm2(tokens) * (1 + mlp_scale) + mlp_shift
        return cast(Tensor, tokens + mlp_gate * self._mixed(modulated, context))

    def _mixed(self, tokens: Tensor, context: SanaContext) -> Tensor:
        """The gated MLP with its convolution; those of 1 × 1 see only the tokens that are there."""
        ff, visible = self.ff, context.visible
        wide = ff.nonlinearity(_pointwise(ff.conv_inverted, tokens))
        rows, columns = context.grid
        if visible is not None:
            wide = spread(wide, visible, rows * columns)
        image = wide.mT.reshape(len(wide), -1, rows, columns)
        wide = ff.conv_depth(image).flatten(2).mT
        if visible is not None:
            wide = gather(wide, visible)
        hidden, gate = wide.chunk(2, dim=2)
        return _pointwise(ff.conv_point, hidden * ff.nonlinearity(gate))


def _pointwise(convolution: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A convolution of 1 × 1 over tokens `(batch, tokens, channels)`."""
    return F.linear(tokens, convolution.weight.flatten(1), convolution.bias)


class Sana(SanaTransformer2DModel):  # type: ignore[misc]
    """Stock Sana in pieces; see `family.Denoiser`."""

    _width_factor = 1.0

    def adapt(self, recipe: Recipe) -> None:
        """Takes on blocks that know of missing tokens, and the recipe's start."""
        shape = recipe.denoiser
        self._width_factor = mup_factor(shape)
        for block in self.transformer_blocks:
            block.__class__ = SanaBlock  # the same parts with another forward pass
            block.attn2.set_processor(CrossAttention())
        start(
            shape,
            self,
            ((b.attn1.to_out[0], b.ff.conv_point) for b in self.transformer_blocks),
        )
        linear = self.time_embed.linear
        tables = (block.scale_shift_table for block in self.transformer_blocks)
        for vectors in (linear.weight, linear.bias, *tables):
            zero_modulation(shape, vectors)
        if shape.zero_modulation == "all":
            nn.init.zeros_(self.scale_shift_table)
        # Attention to the text has no gate (PixArt-alpha starts it so, arXiv 2310.00426).
        zero(self.proj_out, *(block.attn2.to_out[0] for block in self.transformer_blocks))

    @property
    def units(self) -> list[nn.Module]:
        return list(self.transformer_blocks)

    def enter_stage(self, stage: int) -> None:
        """All stages are alike: places are known from the convolutions."""

    def enter(
        self, noised: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, SanaContext]:
        patch = self.config.patch_size
        # A convolution's layout would have the first block compiled apart from the others.
        tokens: Tensor = self.patch_embed(noised).contiguous()
        modulation, timestep = self.time_embed(
            timesteps * _TIME_FACTOR, batch_size=len(noised), hidden_dtype=tokens.dtype
        )
        context = SanaContext(
            grid=(noised.shape[2] // patch, noised.shape[3] // patch),
            text=self.caption_norm(self.caption_projection(text)),
            mask=mask.bool()[:, None, None, :],
            timestep=timestep,
            modulation=modulation,
        )
        return tokens, context

    def through(self, number: int, tokens: Tensor, context: SanaContext) -> Tensor:
        return cast(Tensor, self.transformer_blocks[number](tokens, context))

    def leave(self, tokens: Tensor, context: SanaContext) -> Tensor:
        patches: Tensor = self.proj_out(
            self.norm_out(tokens, context.timestep, self.scale_shift_table)
        )
        (rows, columns), patch = context.grid, self.config.patch_size
        if context.visible is not None:
            patches = spread(patches, context.visible, rows * columns)
        apart = patches.reshape(len(patches), rows, columns, patch, patch, -1)
        return apart.permute(0, 5, 1, 3, 2, 4).reshape(
            len(patches), -1, rows * patch, columns * patch
        )

    def block_matrices(self) -> dict[str, int]:
        """Queries, keys and values stand apart in stock Sana; the convolutions of 1 × 1 are
        matrices too, and the first is the MLP's hidden half and its gate."""
        return {
            name: 2 if name.endswith("conv_inverted.weight") else 1
            for name, parameter in self.named_parameters()
            if name.startswith("transformer_blocks.") and _is_matrix(parameter)
            if not name.endswith("scale_shift_table")
        }

    def learning_rate_factors(self) -> dict[str, float]:
        """For matrices whose inputs are as wide as the stream; 1 but with muP."""
        if self._width_factor == 1.0:
            return {}
        inputs = (
            "patch_embed.",
            "caption_projection.linear_1.",
            "time_embed.emb.timestep_embedder.linear_1.",
        )
        return {
            name: self._width_factor
            for name, parameter in self.named_parameters()
            if _is_matrix(parameter) and not name.startswith(inputs)
            if not name.endswith("scale_shift_table")
        }

    def stock(self) -> nn.Module:
        with torch.device("meta"):
            stock: nn.Module = SanaTransformer2DModel.from_config(dict(self.config))
        return stock

    def spelled_out(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        yield from weights


def _is_matrix(parameter: Tensor) -> bool:
    """Linear layers and convolutions of 1 × 1."""
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2:].numel() == 1)


def build(recipe: Recipe, channels: int, text_hidden_size: int) -> Sana:
    """Freshly initialised, of the process's random numbers. Queries and keys are normalised, as in
    SANA-1.5 (arXiv 2501.18427, section 2.2.2), so that attention stays stable in bf16."""
    shape = recipe.denoiser
    head_dim = shape.hidden_size // shape.heads
    denoiser = Sana(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=shape.heads,
        attention_head_dim=head_dim,
        num_layers=shape.depth,
        num_cross_attention_heads=shape.heads,
        cross_attention_head_dim=head_dim,
        cross_attention_dim=shape.hidden_size,
        caption_channels=text_hidden_size,
        mlp_ratio=shape.mlp_ratio,
        # Nothing of the model depends on it; the pipeline takes its default size from it.
        sample_size=recipe.stages[-1].resolution // _downsampling(recipe),
        patch_size=shape.patch_size,
        qk_norm="rms_norm_across_heads",
    )
    denoiser.adapt(recipe)
    return denoiser


def _downsampling(recipe: Recipe) -> int:
    return 1 if recipe.latent is None else recipe.latent.downsampling
