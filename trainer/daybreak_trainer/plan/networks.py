"""Frozen networks that a recipe names, and what they compute and hold, as far as that is known
without their weights.

A text encoder can compute as much as the denoiser itself. Of an architecture whose sizes are
published the arithmetic is a matrix product for each token and matrix, and attention; of any other
only a loaded model knows, as the run does (`flops.counted`).
"""

from __future__ import annotations

from dataclasses import dataclass

from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.objective import Perceptual
from daybreak_trainer.recipe.stages import Stage

_LOOKS_OF_A_DISTANCE = 3
"""At both images, and the gradient back through one of them."""
_BYTES = 2
"""Of a weight or a value, in bf16 as on a GPU."""
_LAYER_BYTES = 34
"""Of a token, a hidden unit and a layer, kept for the gradient to an image (arXiv 2205.05198,
section 4.1)."""
_VGG16_FLOPS, _VGG16_KEPT, _VGG16_WEIGHTS = 611_712, 1_500, 14_714_688
"""Of vgg16's convolutions: FLOPs of a pixel of the image, bytes of one that are kept for the
gradient (outputs in bf16, compared ones in fp32), and weights."""


@dataclass(frozen=True)
class Transformer:
    """Sizes by its published configuration."""

    width: int
    layers: int
    attention_width: int
    """Of all heads together."""
    matrices: int
    """Weights that every token is multiplied by."""
    weights: int
    """All of them, embeddings included."""
    patch_size: int = 0
    """Of a vision transformer, pixels."""
    image_size: int = 0

    def flops(self, tokens: int) -> float:
        """Of a forward pass."""
        attention = 4 * self.layers * self.attention_width * tokens * tokens
        return float(2 * self.matrices * tokens + attention)


KNOWN = {
    "google/t5gemma-2b-2b-ul2": Transformer(2304, 26, 2048, 2_024_275_968, 2_614_341_888),
    "Qwen/Qwen3-0.6B": Transformer(1024, 28, 2048, 440_401_920, 596_049_920),
    "google/flan-t5-base": Transformer(768, 12, 768, 84_934_656, 109_628_544),
    "facebook/dinov2-with-registers-base": Transformer(
        768, 12, 768, 84_934_656, 86_583_552, patch_size=14, image_size=518
    ),
}
"""By repository: those that presets and examples name."""


@dataclass(frozen=True)
class FrozenCost:
    """Of what is known."""

    flops: float = 0.0
    """For an image of a training step."""
    weights: int = 0
    """That lie on every device."""
    kept_bytes: int = 0
    """Of an image, kept for a gradient that goes through."""
    unknown: tuple[str, ...] = ()
    """What is not in it, as `recipe.field (source)`."""

    def __add__(self, other: FrozenCost) -> FrozenCost:
        return FrozenCost(
            self.flops + other.flops,
            self.weights + other.weights,
            self.kept_bytes + other.kept_bytes,
            self.unknown + other.unknown,
        )


def text_width(recipe: Recipe) -> int | None:
    """Of the text encoder's hidden states; None where it is not known."""
    known = KNOWN.get(recipe.text.path or "")
    return recipe.text.hidden_size or (None if known is None else known.width)


def frozen_cost(recipe: Recipe, stage: Stage) -> FrozenCost:
    """Of the networks of a stage, captions at `text.maxTokens`. A network that two parts name is
    counted among weights twice."""
    total, objective = FrozenCost(), recipe.objective.in_stage(stage)
    text, latent = recipe.text, recipe.latent
    if text.path is not None and not text.precomputed:
        total += _looking("text.path", text.path, text.max_tokens)
    if latent is not None and not latent.precomputed:
        total += FrozenCost(unknown=(f"recipe.latent.autoencoder ({latent.autoencoder})",))
    if objective.alignment is not None:
        tokens = recipe.tokens(stage.resolution, stage.resolution)
        total += _looking("objective.alignment.teacher", objective.alignment.teacher, tokens)
    for number, part in enumerate(objective.perceptual):
        total += _distance(f"objective.perceptual[{number}].teacher", part, stage)
    return total


def lent_cost(recipe: Recipe) -> FrozenCost:
    """Of the encoder that a device holds during an evaluation alone, for its prompts: training
    reads embeddings that were made before."""
    text = recipe.text
    if text.path is None or not text.precomputed:
        return FrozenCost()
    return _looking("text.path", text.path, text.max_tokens)


def _looking(field: str, source: str, tokens: int) -> FrozenCost:
    if (known := KNOWN.get(source)) is None:
        return FrozenCost(unknown=(f"recipe.{field} ({source})",))
    return FrozenCost(known.flops(tokens), known.weights)


def _distance(field: str, part: Perceptual, stage: Stage) -> FrozenCost:
    if part.kind == "lpips":
        pixels = (part.size or stage.resolution // 2) ** 2
        looks = _LOOKS_OF_A_DISTANCE * _VGG16_FLOPS * pixels
        return FrozenCost(float(looks), _VGG16_WEIGHTS, _VGG16_KEPT * pixels)
    if (known := KNOWN.get(part.teacher)) is None:
        return FrozenCost(unknown=(f"recipe.{field} ({part.teacher})",))
    tokens = ((part.size or known.image_size) // known.patch_size) ** 2
    kept = _LAYER_BYTES * known.layers * known.width * tokens
    return FrozenCost(_LOOKS_OF_A_DISTANCE * known.flops(tokens), known.weights, kept)


def weight_bytes(cost: FrozenCost) -> int:
    return _BYTES * cost.weights
