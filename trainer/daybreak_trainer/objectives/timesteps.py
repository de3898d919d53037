"""How much noise each sample gets: logit-normal and shifted towards noise, in part uniform."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daybreak_trainer.recipe.objective import Objective

_STRATA_STREAM = 0x737472617461  # "strata": keeps this use of the seed apart from any other
_EDGE = 2.0**-25
"""Half of what a uniform fp32 number is rounded to."""
_BELOW_ONE = 1.0 - 2.0**-24
"""The largest fp32 number below 1."""


def timesteps(objective: Objective, uniforms: Tensor) -> Tensor:
    """`(batch,)` from 0 to below 1, fp32, of `uniforms` `(batch,)`: the smallest of these, as many
    as `timestep_uniform_share`, give uniform timesteps, the others logit-normal ones by its
    quantiles (SD3, arXiv 2403.03206, section 3.1), and these are shifted. Uniform ones are not:
    they are there for the timesteps that the shift leaves out (PRX)."""
    share = objective.timestep_uniform_share
    uniforms = uniforms.double()  # in fp32 the upper edge would be 1, whose quantile is infinite
    uniform = uniforms / max(share, _EDGE)
    quantiles = ((uniforms - share) / max(1.0 - share, _EDGE)).clamp(_EDGE, 1.0 - _EDGE)
    normal = torch.special.ndtri(quantiles)
    logit_normal = torch.sigmoid(objective.timestep_mean + objective.timestep_std * normal)
    found = torch.where(uniforms < share, uniform, shifted(logit_normal, objective.timestep_shift))
    return found.float().clamp_max(_BELOW_ONE)


def shifted(moments: Tensor, shift: float) -> Tensor:
    """Timesteps moved towards noise where `shift` is above 1 (SD3, section 5.3.2): what a number of
    pixels `shift ** 2` as large needs to hide as much of the image."""
    return shift * moments / (1.0 + (shift - 1.0) * moments)


def strata(seed: int, positions: npt.NDArray[np.int64], whole: range) -> npt.NDArray[np.int64]:
    """Which of `len(whole)` equal parts of 0..1 each sample at `positions` draws from; `whole` are
    the global batch's positions, and each has a part of its own."""
    generator = np.random.Generator(np.random.PCG64([_STRATA_STREAM, seed, whole.start]))
    found: npt.NDArray[np.int64] = generator.permutation(len(whole))[positions - whole.start]
    return found
