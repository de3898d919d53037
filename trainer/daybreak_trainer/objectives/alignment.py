"""Hidden states drawn towards a vision model's features of the clean image (REPA, arXiv 2410.06940;
iREPA, arXiv 2512.10794)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from daybreak_trainer.models.tricks import gather
from daybreak_trainer.objectives.teachers import Teacher

_EPSILON = 1e-6


@torch.no_grad()
def targets(
    teacher: Teacher, images: Tensor, grid: tuple[int, int], spatial_normalisation: float
) -> Tensor:
    """Features of clean `images` `(batch, 3, height, width)` in -1..1 for each image token of
    `grid`, `(batch, tokens, width)`, fp32."""
    return spatially_normalised(teacher.features(images, grid), spatial_normalisation)


def spatially_normalised(features: Tensor, share: float) -> Tensor:
    """`(batch, tokens, width)` less a `share` of its mean over the tokens, over its deviation
    (iREPA, section 4): what tells places apart counts, what they have in common does not. A share
    of 0 changes nothing."""
    if not share:
        return features
    mean = features.mean(dim=1, keepdim=True)
    deviation = features.std(dim=1, keepdim=True, correction=0)
    return (features - share * mean) / (deviation + _EPSILON)


def loss_per_sample(hidden: Tensor, wanted: Tensor, visible: Tensor | None) -> Tensor:
    """Mean of 1 - cosine over the tokens that are there, `(batch,)` in 0..2, fp32.

    `hidden` `(batch, count, width)` is of tokens `visible` `(batch, count)`, None for all; `wanted`
    is `(batch, tokens, width)`.
    """
    if visible is not None:
        wanted = gather(wanted, visible)
    return 1.0 - F.cosine_similarity(hidden.float(), wanted, dim=2).mean(dim=1)
