"""PRX: diffusers' transformer over image and text together, under its own parameter names.

What it trains loads into stock `diffusers.PRXTransformer2DModel`, with none of our code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from diffusers.models.transformers.transformer_prx import (
    PRXTransformer2DModel,
    get_image_ids,
    img2seq,
    seq2img,
)
from torch import Tensor, nn

from daybreak_trainer.models.attention import SmallMaskAttention
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
    rotary: Tensor
    """`(batch or 1, 1, tokens, head_dim / 2, 2, 2)`, fp32."""
    visible: Tensor | None = None

    def at(self, visible: Tensor) -> PrxContext:
        return replace(self, visible=visible, rotary=self.rotary[0, 0][visible].unsqueeze(1))


class Prx(PRXTransformer2DModel):  # type: ignore[misc]
    """Stock PRX in pieces; see `family.Denoiser`."""

    @property
    def units(self) -> list[nn.Module]:
        return list(self.blocks)

    def enter(
        self, noised: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor
    ) -> tuple[Tensor, PrxContext]:
        height, width = noised.shape[2:]
        patch = self.patch_size
        tokens: Tensor = self.img_in(img2seq(noised, patch))
        # Places are the same for all samples: one table, which broadcasts.
        places = get_image_ids(1, height, width, patch_size=patch, device=noised.device)
        context = PrxContext(
            grid=(height // patch, width // patch),
            text=self.txt_in(text),
            mask=mask,
            timestep=self._compute_timestep_embedding(timesteps, dtype=tokens.dtype),
            rotary=self.pe_embedder(places),
        )
        return tokens, context

    def through(self, number: int, tokens: Tensor, context: PrxContext) -> Tensor:
        out = self.blocks[number](
            hidden_states=tokens,
            encoder_hidden_states=context.text,
            temb=context.timestep,
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

    def to_stock(self) -> nn.Module:
        stock: nn.Module = PRXTransformer2DModel.from_config(dict(self.config))
        stock.load_state_dict(self.state_dict())
        return stock.eval()


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
    denoiser.set_attn_processor(SmallMaskAttention())
    # diffusers starts the blocks' gates at zero (adaLN-Zero, DiT, arXiv 2212.09748) but leaves the
    # last layer random.
    for linear in (denoiser.final_layer.linear, denoiser.final_layer.adaLN_modulation[-1]):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return denoiser
