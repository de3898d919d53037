"""The loss that compares runs: of the whole model, at fixed timesteps and fixed noise.

Routing and masking change what the training loss means, and random timesteps make it jump; this one
is the same function of the weights in every run on the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from daybreak_trainer.models.text import Conditioner
from daybreak_trainer.objectives import flow
from daybreak_trainer.objectives.draws import sample_seed
from daybreak_trainer.recipe.objective import Objective


class ValidationBatch(Protocol):
    """Samples that training does not see."""

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Numbers of the samples, `(batch,)`: each has noise of its own."""

    @property
    def clean(self) -> Tensor:
        """Images in -1..1, or scaled latents, `(batch, channels, height, width)`, on the model's
        device."""

    @property
    def captions(self) -> Sequence[str]: ...


@torch.no_grad()
def dense_losses(
    model: nn.Module,
    text: Conditioner,
    objective: Objective,
    batch: ValidationBatch,
    timesteps: Sequence[float],
    noise_seed: int,
    dtype: torch.dtype,
) -> Tensor:
    """Velocity loss of each sample at each of `timesteps`, `(timesteps, batch)`, fp32, with every
    token, and the text of every sample.

    `model` is a `TextToImage`, computing in `dtype`; where it is sharded, all ranks call this
    together with equally many samples. A sample's noise is the same at all timesteps and comes from
    (noise_seed, its position).
    """
    clean = batch.clean.float()
    given = text.condition(batch.captions, clean.device, dtype)
    noise = objective.noise_scale * _noise(noise_seed, batch.positions, clean)
    rows = []
    for moment in timesteps:
        t = torch.full((len(clean),), moment, device=clean.device)
        x_t = flow.noised(clean, noise, t).to(dtype)
        output = model(x_t, t, **given).output
        rows.append(flow.loss_per_sample(objective, output, clean, noise, t))
    return torch.stack(rows)


def _noise(seed: int, positions: npt.NDArray[np.int64], like: Tensor) -> Tensor:
    """`(batch, channels, height, width)`, drawn on the host: the same on every device."""
    generator = torch.Generator()
    drawn = torch.empty(like.shape)
    for row, position in enumerate(positions):
        generator.manual_seed(sample_seed(seed, int(position)))
        torch.randn(like.shape[1:], generator=generator, out=drawn[row])
    return drawn.to(like.device)
