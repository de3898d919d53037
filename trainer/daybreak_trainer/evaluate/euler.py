"""From noise to data along the velocity, in Euler steps, with classifier-free guidance.

Time runs from t=1, noise, to t=0, data: `x_t = (1 - t) x + t noise`, velocity `v = noise - x`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

FLOOR = 0.05
"""Of t where a predicted image becomes a velocity: diffusers' `PRXPixelPipeline` has it so."""


def velocity(
    prediction: Literal["x", "v"], output: Tensor, latents: Tensor, moment: Tensor
) -> Tensor:
    """What the network's output says of the velocity at `latents` and t = `moment`, a scalar."""
    return output if prediction == "v" else (latents - output) / moment.clamp_min(FLOOR)


def guided(both: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) on outputs without the prompt and then with it,
    `(2 batch, ...)`. The same on images as on velocities, for one is an affine map of the other."""
    without, with_text = both.chunk(2)
    return without + guidance * (with_text - without)


def integrate(
    field: Callable[[Tensor, Tensor], Tensor], noise: Tensor, scheduler: Any, steps: int
) -> Tensor:
    """Where `noise` flows to: `field` gives the velocity at `x` and t, a scalar. `scheduler` is a
    `FlowMatchEulerDiscreteScheduler`."""
    scheduler.set_timesteps(steps, device=noise.device)
    x = noise
    for t in scheduler.timesteps:
        moment = t.float() / scheduler.config.num_train_timesteps
        x = scheduler.step(field(x, moment), t, x).prev_sample
    return x
