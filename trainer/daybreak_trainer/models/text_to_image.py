"""What is trained, as one module: the denoiser, and the text encoder where it is trained too.

One module means one FSDP root, one optimizer, one EMA and one set of names in a checkpoint:
`denoiser.*` and `text_encoder.*`.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models import text as texts
from daybreak_trainer.models.text import TextTower, encode
from daybreak_trainer.recipe import Recipe

_BLOCK = re.compile(r"\b(blocks?|layers?)\.\d+\.")
_NOT_HIDDEN = re.compile(r"\bmodulation\b|\brelative_attention_bias\b")
_FUSED = {"img_qkv_proj.weight": 3, "txt_kv_proj.weight": 2}


class TextToImage(nn.Module):
    """Predicts the clean image from a noised one and its caption's tokens."""

    def __init__(self, denoiser: denoisers.Denoiser, text_encoder: nn.Module | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.text_encoder = text_encoder

    def forward(
        self,
        noised: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        input_ids: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Clean images `(batch, 3, height, width)`.

        Takes token ids `(batch, tokens)` where the encoder is trained, else `text`, its hidden
        states `(batch, tokens, hidden)`; `mask` is `(batch, tokens)`.
        """
        if self.text_encoder is not None:
            assert input_ids is not None
            text = encode(self.text_encoder, input_ids, mask)
        image: Tensor = self.denoiser(
            hidden_states=noised,
            timestep=timesteps,
            encoder_hidden_states=text,
            attention_mask=mask,
            return_dict=False,
        )[0]
        return image

    @property
    def units(self) -> list[nn.Module]:
        """The denoiser's transformer blocks, in the order of the forward pass."""
        return self.denoiser.units

    def block_matrices(self) -> dict[str, int]:
        """The weight matrices of the transformer blocks by parameter name, and in how many parts
        each is to be orthogonalised (Muon): what turns hidden states into hidden states, not
        embeddings, modulation, projections in and out, biases and gains."""
        return {
            name: next((n for ending, n in _FUSED.items() if name.endswith(ending)), 1)
            for name, parameter in self.named_parameters()
            if parameter.ndim == 2 and _BLOCK.search(name) and not _NOT_HIDDEN.search(name)
        }


def build(recipe: Recipe, vocabulary: list[str]) -> tuple[TextToImage, TextTower]:
    """Freshly initialised model and text tower; equal on every rank.

    Raises:
        RecipeError: a pretrained text encoder that cannot be loaded.
    """
    tower = texts.build(recipe.text, vocabulary, recipe.seed + 1)
    denoiser = denoisers.build(recipe.denoiser, tower.hidden_size, recipe.seed)
    return TextToImage(denoiser, tower.encoder if tower.trained else None), tower
