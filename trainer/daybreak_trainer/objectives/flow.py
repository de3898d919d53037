"""Flow matching with x-prediction and the velocity loss (JiT, arXiv 2511.13720).

Time runs from t=0, data, to t=1, noise: `x_t = (1 - t) x + t * noise`, velocity `v = noise - x`.
The network puts out the clean image; with `x = x_t - t v` the velocity loss is the image loss over
`t^2`, so `1 / max(t, floor)^2` weights it.

Timestep, noise and caption dropout of a sample come from (seed, position in the run) alone: a run
that resumes on another number of workers draws the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from daybreak_trainer.recipe.objective import Objective

_NOISE_STREAM = b"noise"


@dataclass(frozen=True)
class Draws:
    """What chance decides for each sample of a batch."""

    timesteps: Tensor
    """`(batch,)`, fp32, in 0..1."""
    noise: Tensor
    """`(batch, channels, height, width)`, fp32, standard deviation `objective.noise_scale`."""
    drop_caption: Tensor
    """Bool `(batch,)`: whose caption becomes the empty prompt, for classifier-free guidance. On the
    device: reading it would wait for the step before."""


def sample_seed(seed: int, position: int) -> int:
    """The 63-bit seed of everything random about one sample."""
    digest = hashlib.blake2b(
        position.to_bytes(8, "little"),
        key=seed.to_bytes(16, "little"),
        person=_NOISE_STREAM,
        digest_size=8,
    ).digest()
    return int.from_bytes(digest, "little") >> 1


def draw(
    objective: Objective,
    caption_dropout: float,
    seed: int,
    positions: npt.NDArray[np.int64],
    shape: tuple[int, int, int],
    device: torch.device,
) -> Draws:
    """Draws for the samples at `positions`; `shape` is (channels, height, width).

    The numbers depend on the device's kind (CPU and CUDA generators differ), never on its rank.
    """
    generator = torch.Generator(device=device)
    uniforms = torch.empty((len(positions), 4), device=device)
    noise = torch.empty((len(positions), *shape), device=device)
    for row, position in enumerate(positions):
        generator.manual_seed(sample_seed(seed, int(position)))
        torch.rand(4, generator=generator, out=uniforms[row])
        torch.randn(shape, generator=generator, out=noise[row])
    dropped = uniforms[:, 3] < caption_dropout
    return Draws(_timesteps(objective, uniforms), noise.mul_(objective.noise_scale), dropped)


def _timesteps(objective: Objective, uniforms: Tensor) -> Tensor:
    """Logit-normal timesteps, a share of them uniform, shifted towards noise; `(batch,)`."""
    tiny = torch.finfo(torch.float32).tiny
    # Box-Muller: one normal a sample from two uniforms.
    radius = torch.sqrt(-2.0 * torch.log(uniforms[:, 0].clamp_min(tiny)))
    normal = radius * torch.cos(2.0 * torch.pi * uniforms[:, 1])
    logit_normal = torch.sigmoid(objective.timestep_mean + objective.timestep_std * normal)
    share = objective.timestep_uniform_share
    mixed = torch.where(uniforms[:, 2] < share, uniforms[:, 2] / max(share, tiny), logit_normal)
    shift = objective.timestep_shift
    return shift * mixed / (1.0 + (shift - 1.0) * mixed)


def noised(images: Tensor, draws: Draws) -> Tensor:
    """`x_t` for clean `images` in -1..1; both `(batch, channels, height, width)`."""
    # One kernel, and no images in between to store.
    return torch.lerp(images, draws.noise, draws.timesteps[:, None, None, None])


def loss_per_sample(
    objective: Objective, prediction: Tensor, images: Tensor, timesteps: Tensor
) -> Tensor:
    """Velocity loss of each sample, mean over its pixels; `(batch,)`, fp32."""
    weight = 1.0 / timesteps.clamp_min(objective.timestep_floor).square()
    error = mse_loss(prediction.float(), images, reduction="none").mean(dim=(1, 2, 3))
    return weight * error
