"""Contrastive flow matching: away from another sample's velocity (arXiv 2506.05350, eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from daybreak_trainer.objectives import flow


def distance_per_sample(
    velocity: Tensor, clean: Tensor, noise: Tensor, counted: int, kept: Tensor | None = None
) -> Tensor:
    """Mean square distance between each sample's predicted `velocity` and the true one of another,
    `(batch,)`, fp32; all images are `(batch, channels, height, width)`.

    The other one is the sample before it in the same pass of the same rank, among the first
    `counted`: images of other ranks are not here. So unlike all else a step's result depends, a
    little, on how the global batch is split: not in its expectation, for which other sample it is
    comes from the order of the data, which is random. A sample that is alone has none: zero.
    """
    rows = len(velocity)
    if counted < 2:
        return velocity.new_zeros(rows, dtype=torch.float32)
    target = noise - clean
    # Rolled and not indexed: an index would have to come to the device.
    others = torch.cat([target[:counted].roll(1, dims=0), target[counted:]])
    return flow.mean_error(velocity.float(), others, kept)
