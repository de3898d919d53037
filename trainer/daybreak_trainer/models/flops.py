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

from daybreak_trainer.models.denoiser import channels
from daybreak_trainer.models.tricks import NONE, Tricks, left_over
from daybreak_trainer.recipe import Recipe

_TIME_FEATURES = 256
"""Width of the sinusoidal timestep features (diffusers)."""
_BACKWARD_AND_FORWARD = 3

Checkpointing = Literal["none", "blocks", "budget"]


@dataclass(frozen=True)
class SampleFlops:
    """FLOPs of one sample; forward, but for `text`."""

    trained: float
    """Of everything that gets a gradient."""
    blocks: float
    """Of the denoiser's blocks, which are part of it."""
    frozen: float
    """Of frozen networks: encoders, and what a loss looks through."""
    text: float = 0.0
    """A training step's for the text, part of `model` or, where its encoder is frozen, of
    `frozen`."""

    @property
    def model(self) -> float:
        """What a training step needs: the count of MFU."""
        return _BACKWARD_AND_FORWARD * self.trained

    @property
    def text_share(self) -> float:
        """Of a training step, what the text encoder takes, 0..1."""
        return self.text / (self.model + self.frozen)

    def hardware(self, checkpointing: Checkpointing) -> float | None:
        """What a training step computes, blocks that are computed again included: the count of
        HFU. None with a memory budget, where the compiler decides how much that is."""
        if checkpointing == "budget":
            return None
        return self.model + (self.blocks if checkpointing == "blocks" else 0.0)

    def device(self, checkpointing: Checkpointing) -> float | None:
        """Everything that the device computes for a sample, frozen networks included."""
        hardware = self.hardware(checkpointing)
        return None if hardware is None else hardware + self.frozen


@dataclass(frozen=True)
class _Sizes:
    """What a sample is to the denoiser."""

    tokens: int
    """Of the image."""
    patch: int
    """Numbers of a patch."""
    text_tokens: int
    text_width: int


@dataclass(frozen=True)
class _Formula:
    """Forward of a denoiser, by how many tokens are there."""

    enter: float
    block: Callable[[int], float]
    leave: Callable[[int], float]


def per_sample(
    recipe: Recipe,
    *,
    height: int,
    width: int,
    text_width: int | None = None,
    text_tokens: int | None = None,
    frozen_text: float = 0.0,
    tricks: Tricks = NONE,
    teacher_width: int | None = None,
) -> SampleFlops:
    """FLOPs of a recipe's sample of `height` × `width` pixels, its caption padded to `text_tokens`,
    by default the recipe's most.

    `text_width` is the width of the encoder's hidden states and `frozen_text` the FLOPs of its
    forward pass (`counted`), both where the encoder is a pretrained one. `tricks` leave tokens out,
    and `teacher_width` is that of the features that hidden states are projected to.
    """
    text = recipe.text
    captioned = text.max_tokens if text_tokens is None else text_tokens
    encoder = 0.0
    if text.kind == "joint":
        assert text.hidden_size is not None  # the recipe's own rule, as the next
        assert text.depth is not None
        text_width = text.hidden_size
        encoder = distilbert(width=text.hidden_size, depth=text.depth, tokens=captioned)
    assert text_width is not None, "a pretrained encoder's width is not in the recipe"
    patch = channels(recipe) * recipe.denoiser.patch_size**2
    sizes = _Sizes(recipe.tokens(height, width), patch, captioned, text_width)
    formula = _DENOISERS[recipe.denoiser.kind](recipe, sizes)
    there = tokens_by_block(recipe, sizes.tokens, tricks)
    blocks = sum(formula.block(tokens) for tokens in there)
    last = there[-1] if tricks.masking is not None else sizes.tokens
    aux = _auxiliary(recipe, sizes.tokens, there, tricks, teacher_width)
    trained = formula.enter + blocks + formula.leave(last) + aux + encoder
    for_text = _BACKWARD_AND_FORWARD * encoder + frozen_text
    return SampleFlops(trained=trained, blocks=blocks, frozen=frozen_text, text=for_text)


def tokens_by_block(recipe: Recipe, tokens: int, tricks: Tricks) -> list[int]:
    """Tokens that each block sees, of an image of `tokens`."""
    there = [tokens] * recipe.denoiser.depth
    if tricks.routing is not None:
        for number in range(tricks.routing.first, tricks.routing.last + 1):
            there[number] = left_over(tokens, tricks.routing.share)
    if tricks.masking is not None:
        for number in range(tricks.masking.mixer_depth, len(there)):
            there[number] = left_over(tokens, tricks.masking.share)
    return there


def _auxiliary(
    recipe: Recipe, tokens: int, there: list[int], tricks: Tricks, teacher_width: int | None
) -> float:
    """Of what is trained beside the model: SPRINT's fusion, and the projector to a teacher."""
    d, total = recipe.denoiser.hidden_size, 0.0
    if tricks.routing is not None and tricks.routing.kind == "sprint":
        total += 2 * tokens * 2 * d * d
    alignment = recipe.objective.alignment
    if tricks.capture is not None and alignment is not None and teacher_width is not None:
        if alignment.projector == "conv":
            total += 2 * tokens * 9 * d * teacher_width
        else:
            wide = alignment.projector_size
            total += 2 * there[tricks.capture] * wide * (d + wide + teacher_width)
    return total


def prx(recipe: Recipe, sizes: _Sizes) -> _Formula:
    """Forward of `diffusers.PRXTransformer2DModel`. With d its width, T image and S text tokens, m
    the MLP's width:

        block = 2T·4d² + 2T·3dm + 2S·2d² + 4dT(T+S) + 2·6d²
                qkv, out   MLP     text k,v  attention  modulation, once a sample, unless shared
    """
    shape, text_tokens = recipe.denoiser, sizes.text_tokens
    d, mlp = shape.hidden_size, int(shape.hidden_size * shape.mlp_ratio)
    modulation = 2 * 6 * d * d
    own, shared = (0, modulation) if shape.shared_modulation else (modulation, 0)

    def block(tokens: int) -> float:
        return (
            2 * tokens * 4 * d * d
            + 2 * tokens * 3 * d * mlp
            + 2 * text_tokens * 2 * d * d
            + 4 * d * tokens * (tokens + text_tokens)
            + own
        )

    bottleneck = shape.bottleneck_size
    patch_in = sizes.patch * d if bottleneck is None else bottleneck * (sizes.patch + d)
    enter = (
        2 * sizes.tokens * patch_in
        + 2 * text_tokens * sizes.text_width * d
        + 2 * (_TIME_FEATURES * d + d * d)
        + shared
    )
    # The last layer's modulation sees one vector a sample.
    return _Formula(enter, block, lambda tokens: 2 * tokens * d * sizes.patch + 2 * 2 * d * d)


def sana(recipe: Recipe, sizes: _Sizes) -> _Formula:
    """Forward of `diffusers.SanaTransformer2DModel`. With h the width of a head, and T' all tokens
    of the image, which the convolution goes over whichever are there:

        block = 2T·6d² + 4Td(h+1) + 2S·2d² + 4dTS + 2T·3dm + 2T'·9·2m
                q,k,v,out  linear    text k,v  cross-    MLP    convolution
                and q,out  attention           attention
    """
    shape, text_tokens = recipe.denoiser, sizes.text_tokens
    d, mlp = shape.hidden_size, int(shape.hidden_size * shape.mlp_ratio)
    head_dim = d // shape.heads

    def block(tokens: int) -> float:
        return (
            2 * tokens * 6 * d * d
            + 4 * tokens * d * (head_dim + 1)
            + 2 * text_tokens * 2 * d * d
            + 4 * d * tokens * text_tokens
            + 2 * tokens * 3 * d * mlp
            + 2 * sizes.tokens * 9 * 2 * mlp
        )

    enter = (
        2 * sizes.tokens * sizes.patch * d
        + 2 * text_tokens * (sizes.text_width * d + d * d)
        + 2 * (_TIME_FEATURES * d + d * d + 6 * d * d)
    )
    return _Formula(enter, block, lambda tokens: 2 * tokens * d * sizes.patch)


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


_DENOISERS = {"prx": prx, "sana": sana}
"""By `recipe.denoiser.kind`; another architecture is one more function."""
