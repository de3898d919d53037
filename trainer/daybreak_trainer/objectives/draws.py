"""What chance decides for a sample: from (seed, position in the run) alone, so a run that resumes
on another number of workers draws the same.

Stratified timesteps depend on the global batch too: on its first position and its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daybreak_trainer.objectives.timesteps import strata, timesteps
from daybreak_trainer.recipe.objective import Objective
from daybreak_trainer.sample_hash import sample_hash

_USE = b"noise"


@dataclass(frozen=True)
class Draws:
    """Of a batch, on the device: reading them would wait for the step before."""

    timesteps: Tensor
    """`(batch,)`, fp32, from 0 to below 1."""
    noise: Tensor
    """`(batch, channels, height, width)`, fp32, standard deviation `objective.noise_scale`."""
    drop_caption: Tensor
    """Bool `(batch,)`: whose caption becomes the empty prompt, for classifier-free guidance."""
    scores: Tensor | None = None
    """`(batch, image tokens)`, uniform in 0..1: which tokens are left out. None where none is."""


def sample_seed(seed: int, position: int) -> int:
    """The 63-bit seed of everything random about one sample."""
    return sample_hash(seed, position, _USE) >> 1


def draw(
    objective: Objective,
    caption_dropout: float,
    seed: int,
    positions: npt.NDArray[np.int64],
    whole: range,
    shape: tuple[int, int, int],
    tokens: int,
    device: torch.device,
) -> Draws:
    """Draws for the samples at `positions` of a global batch at `whole`; `shape` is (channels,
    height, width) and `tokens` how many an image has.

    The numbers depend on the device's kind (CPU and CUDA generators differ), never on its rank.
    """
    generator = torch.Generator(device=device)
    uniforms = torch.empty((len(positions), 2), device=device)
    noise = torch.empty((len(positions), *shape), device=device)
    scores = None
    if objective.routing is not None or objective.masking is not None:
        scores = torch.empty((len(positions), tokens), device=device)
    for row, position in enumerate(positions):
        generator.manual_seed(sample_seed(seed, int(position)))
        torch.rand(2, generator=generator, out=uniforms[row])
        torch.randn(shape, generator=generator, out=noise[row])
        if scores is not None:
            torch.rand(tokens, generator=generator, out=scores[row])
    moments = uniforms[:, 0].double()  # a part and a number below 1 may be the next part in fp32
    if objective.stratified:
        parts = torch.from_numpy(strata(seed, positions, whole))
        if device.type == "cuda":
            parts = parts.pin_memory()  # else the copy waits for the step before
        moments = (parts.to(device, non_blocking=True) + moments) / len(whole)
    return Draws(
        timesteps(objective, moments),
        noise.mul_(objective.noise_scale),
        uniforms[:, 1] < caption_dropout,
        scores,
    )
