"""What a device holds while it trains, by formula, and how many images it takes at once.

State and activations are what a recipe can be held to before it runs; contexts, buffers of
communication and fragments are not in it (`telemetry.devices` leaves room for them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from daybreak_trainer.models.flops import tokens_by_block
from daybreak_trainer.models.tricks import Tricks
from daybreak_trainer.plan.networks import FrozenCost, frozen_cost, lent_cost, weight_bytes
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.stages import Stage

_STATE_BYTES, _GRADIENT_BYTES, _AVERAGE_BYTES = 16, 4, 4
"""Of a parameter, all in fp32: weights, two moments and the average; its gradient; each further
average (`ema.power`)."""
_GATHERED_BYTES = 8
"""Of a parameter of one block: its weights and the next block's in bf16, its gradient in fp32."""
_BLOCK_INPUT_BYTES = 2
_IMAGE_COPIES, _FP32 = 7, 4
"""Clean, noise, noised, prediction, target, difference and gradient."""

_KEPT = {
    ("prx", "none"): (42.2, 8.0, 14.1),
    ("prx", "blocks"): (24.3, 6.0, 8.5),
    ("sana", "none"): (68.8, 16.0, 12.8),
    ("sana", "blocks"): (42.7, 14.0, 12.8),
}
"""Bytes that autograd keeps of a block in bf16, for a hidden unit: of each image token, of one
times `mlpRatio`, and of each text token; by family and `compute.compile`, whose compiler keeps
less. Counted with autograd's own hooks on blocks of 256 hidden units, attention without its
scores."""


@dataclass(frozen=True)
class Layout:
    """How a run lies on its devices: `spec.workers` and `spec.compute`."""

    devices: int
    shards: int
    """Devices that share one copy of the state: all of them, or those of a node."""
    device_batch_size: int | None = None
    compile: Literal["none", "blocks"] = "none"
    activation_checkpointing: Literal["none", "blocks", "budget"] = "none"
    memory_budget: float = 1.0
    evaluates: bool = False
    """While its devices hold what they train (`spec.evaluation`)."""

    def rows(self, batch_size: int) -> int:
        """Images of a device at once, as `parallel.microbatch` deals them."""
        share = -(-batch_size // self.devices)
        passes = -(-share // (self.device_batch_size or share))
        return -(-share // passes)


def checkpoint_bytes(recipe: Recipe, parameters: int) -> int:
    """Of one commit."""
    return parameters * (_STATE_BYTES + _AVERAGE_BYTES * _averages(recipe))


def device_bytes(recipe: Recipe, parameters: int, layout: Layout) -> int:
    """The most that a device holds: in the stage that needs most, or in an evaluation, which comes
    between two steps. Of frozen networks what is known."""
    state = checkpoint_bytes(recipe, parameters) + _GRADIENT_BYTES * parameters
    gathered = _GATHERED_BYTES * parameters // recipe.denoiser.depth
    return (
        state // layout.shards
        + gathered
        + max(
            *(_of_stage(recipe, stage, layout) for stage in recipe.stages),
            weight_bytes(lent_cost(recipe)) if layout.evaluates else 0,
        )
    )


def largest_device_batch(
    recipe: Recipe, parameters: int, layout: Layout, capacity: int
) -> int | None:
    """The most images at once with which `capacity` bytes suffice; None: not even one's."""
    share = max(-(-stage.batch_size // layout.devices) for stage in recipe.stages)
    for images in range(share, 0, -1):
        tried = Layout(**{**vars(layout), "device_batch_size": images})
        if device_bytes(recipe, parameters, tried) <= capacity:
            return images
    return None


def block_bytes(recipe: Recipe, tokens: int, text_tokens: int, compiled: str) -> float:
    """That are kept of one block for its backward pass, for one image."""
    shape = recipe.denoiser
    fixed, by_ratio, by_text = _KEPT[shape.kind, compiled]
    a_token = fixed + by_ratio * shape.mlp_ratio
    return shape.hidden_size * (tokens * a_token + text_tokens * by_text)


def _averages(recipe: Recipe) -> int:
    return 0 if recipe.ema.power is None else len(recipe.ema.power.deviations)


def _of_stage(recipe: Recipe, stage: Stage, layout: Layout) -> int:
    side = stage.resolution
    tokens, frozen = recipe.tokens(side, side), frozen_cost(recipe, stage)
    there = tokens_by_block(recipe, tokens, Tricks.of(recipe, stage))
    if recipe.denoiser.kind == "sana":  # its convolution goes over all places
        there = [tokens] * len(there)
    text = recipe.text.max_tokens
    blocks = [block_bytes(recipe, number, text, layout.compile) for number in there]
    match layout.activation_checkpointing:
        case "none":
            kept = sum(blocks)
        case "budget":
            kept = layout.memory_budget * sum(blocks)
        case "blocks":
            inputs = _BLOCK_INPUT_BYTES * recipe.denoiser.hidden_size * sum(there)
            kept = inputs + max(blocks)
    image = kept + _image_bytes(recipe, side) + frozen.kept_bytes
    return int(layout.rows(stage.batch_size) * image) + weight_bytes(frozen)


def _image_bytes(recipe: Recipe, side: int) -> int:
    latent = recipe.latent
    channels = 3 if latent is None else latent.channels
    places = (side // (1 if latent is None else latent.downsampling)) ** 2
    return _IMAGE_COPIES * _FP32 * channels * places


def unknown(recipe: Recipe) -> tuple[str, ...]:
    """Frozen networks that are in no figure, of any stage."""
    total = sum((frozen_cost(recipe, stage) for stage in recipe.stages), FrozenCost())
    return tuple(dict.fromkeys(total.unknown))
