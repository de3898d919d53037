"""PRX: diffusers' transformer over image and text together, under its own parameter names.

What it trains loads into stock `diffusers.PRXTransformer2DModel`, with none of our code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_prx import (
    PRXTransformer2DModel,
    img2seq,
    seq2img,
)
from torch import Tensor, nn

from daybreak_trainer.models.attention import SmallMaskAttention
from daybreak_trainer.models.initialisation import mup_factor, start, zero, zero_modulation
from daybreak_trainer.models.rope import places, stretches
from daybreak_trainer.models.tricks import spread
from daybreak_trainer.recipe import Recipe

_FUSED = {"img_qkv_proj.weight": 3, "txt_kv_proj.weight": 2}


@dataclass(frozen=True)
class PrxContext:
    """What the blocks share; see `family.Context`."""

    grid: tuple[int, int]
    text: Tensor
    """`(batch, text tokens, hidden)`."""
    mask: Tensor
    timestep: Tensor
    """Its embedding, `(batch, hidden)`."""
    modulation: Tensor
    """What the blocks' modulations take: the same, or the shared modulation's output."""
    rotary: Tensor
    """`(batch or 1, 1, tokens, head_dim / 2, 2, 2)`, fp32."""
    visible: Tensor | None = None

    def at(self, visible: Tensor) -> PrxContext:
        return replace(self, visible=visible, rotary=self.rotary[0, 0][visible].unsqueeze(1))


class Gain(nn.Module):
    """A block's part of a shared modulation: a factor for every channel of shift, scale and gate,
    instead of a matrix of its own (nano-t2i; PixArt-alpha, arXiv 2310.00426, adds)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6 * hidden_size))

    def forward(self, shared: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Shift, scale and gate `(batch, 1, hidden)` of attention and of the MLP."""
        parts = (shared * self.gain)[:, None, :].chunk(6, dim=-1)
        return parts[:3], parts[3:]


class Prx(PRXTransformer2DModel):  # type: ignore[misc]
    """Stock PRX in pieces; see `family.Denoiser`."""

    shared_modulation: nn.Linear | None
    """Of all blocks, where the recipe shares it."""
    _steps: Sequence[float] | None = None
    """Of every stage's grid: steps of the last one's that one of it spans. None where coordinates
    count patches."""
    _step = 1.0
    """That of the stage that was entered."""
    _width_factor = 1.0

    def adapt(self, recipe: Recipe) -> None:
        """Takes on what stock PRX does not have, and the recipe's start."""
        shape = recipe.denoiser
        self._width_factor = mup_factor(shape)
        self.set_attn_processor(SmallMaskAttention())
        if shape.rope_range == "last-stage":
            self._steps = stretches([stage.resolution for stage in recipe.stages])
        self.shared_modulation = None
        if shape.shared_modulation:
            self.shared_modulation = nn.Linear(self.hidden_size, 6 * self.hidden_size)
            for block in self.blocks:
                block.modulation = Gain(self.hidden_size)
        if shape.zero_modulation == "gates":
            for linear in self._modulations():
                linear.reset_parameters()  # all zero in stock PRX
        start(shape, self, ((b.attention.to_out[0], b.down_proj) for b in self.blocks))
        for linear in self._modulations():
            zero_modulation(shape, linear.weight)
            zero_modulation(shape, linear.bias)
        # diffusers starts the blocks' gates at zero (adaLN-Zero, DiT, arXiv 2212.09748) but leaves
        # the last layer random.
        zero(self.final_layer.linear)
        if shape.zero_modulation == "all":
            zero(self.final_layer.adaLN_modulation[-1])

    def _modulations(self) -> list[nn.Linear]:
        if self.shared_modulation is not None:
            return [self.shared_modulation]
        return [block.modulation.lin for block in self.blocks]

    @property
    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def enter_stage(self, stage: int) -> None:
        self._step = 1.0 if self._steps is None else self._steps[stage]

    def enter(
        self, noised: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, PrxContext]:
        grid = (noised.shape[2] // self.patch_size, noised.shape[3] // self.patch_size)
        tokens: Tensor = self.img_in(img2seq(noised, self.patch_size))
        timestep = self._compute_timestep_embedding(timesteps, dtype=tokens.dtype)
        shared = self.shared_modulation
        context = PrxContext(
            grid=grid,
            text=self.txt_in(text),
            mask=mask,
            timestep=timestep,
            modulation=timestep if shared is None else shared(F.silu(timestep)),
            # Places are the same for all samples: one table, which broadcasts.
            rotary=self.pe_embedder(places(grid, self._step, noised.device)),
        )
        return tokens, context

    def through(self, number: int, tokens: Tensor, context: PrxContext) -> Tensor:
        out = self.blocks[number](
            hidden_states=tokens,
            encoder_hidden_states=context.text,
            temb=context.modulation,
            image_rotary_emb=context.rotary,
            attention_mask=context.mask,
        )
        return cast(Tensor, out)

    def leave(self, tokens: Tensor, context: PrxContext) -> Tensor:
        patches: Tensor = self.final_layer(tokens, context.timestep)
        rows, columns = context.grid
        if context.visible is not None:
            patches = spread(patches, context.visible, rows * columns)
        size = (rows * self.patch_size, columns * self.patch_size)
        return cast(Tensor, seq2img(patches, self.patch_size, size))

    def block_matrices(self) -> dict[str, int]:
        return {
            name: next((n for ending, n in _FUSED.items() if name.endswith(ending)), 1)
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and name.startswith("blocks.") and ".modulation." not in name
        }

    def learning_rate_factors(self) -> dict[str, float]:
        """For matrices whose inputs are as wide as the stream; 1 but with muP."""
        if self._width_factor == 1.0:
            return {}
        inputs = ("img_in.", "txt_in.", "time_in.in_layer.")
        return {
            name: self._width_factor
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and not name.startswith(inputs)
        }

    def stock(self) -> nn.Module:
        with torch.device("meta"):
            stock: nn.Module = PRXTransformer2DModel.from_config(dict(self.config))
        return stock

    def spelled_out(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A shared modulation becomes one for each block, whose rows have its gains."""
        shared: dict[str, Tensor] = {}
        gains: dict[str, Tensor] = {}
        for name, value in weights:
            if name.startswith("shared_modulation."):
                shared[name.removeprefix("shared_modulation.")] = value
            elif name.endswith(".modulation.gain"):
                gains[name.removesuffix("gain")] = value
            else:
                yield name, value
        for block, gain in gains.items():
            yield f"{block}lin.weight", gain[:, None] * shared["weight"]
            yield f"{block}lin.bias", gain * shared["bias"]


def build(recipe: Recipe, channels: int, text_hidden_size: int) -> Prx:
    """Freshly initialised, of the process's random numbers."""
    shape = recipe.denoiser
    axis = shape.hidden_size // shape.heads // 2
    denoiser = Prx(
        in_channels=channels,
        patch_size=shape.patch_size,
        context_in_dim=text_hidden_size,
        hidden_size=shape.hidden_size,
        mlp_ratio=shape.mlp_ratio,
        num_heads=shape.heads,
        depth=shape.depth,
        axes_dim=[axis, axis],
        bottleneck_size=shape.bottleneck_size,
    )
    denoiser.adapt(recipe)
    return denoiser
