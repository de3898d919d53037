"""Flow matching with the velocity loss (arXiv 2209.03003, 2210.02747; JiT, arXiv 2511.13720).

Time runs from t=0, data, to t=1, noise: `x_t = (1 - t) x + t noise`, velocity `v = noise - x`.
The network puts out the velocity, or the clean image: with `x = x_t - t v` the velocity loss is
then the image loss over `t^2`, so `1 / max(t, floor)^2` weights it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from daybreak_trainer.recipe.objective import Objective


def noised(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """`x_t` `(batch, channels, height, width)`; `timesteps` are `(batch,)`."""
    # One kernel, and no images in between to store.
    return torch.lerp(clean, noise, over_images(timesteps))


def velocity(objective: Objective, output: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """The velocity that a network's `output` means at `x_t`; both `(batch, channels, height,
    width)`."""
    if objective.prediction == "v":
        return output
    return (x_t - output) / over_images(timesteps.clamp_min(objective.timestep_floor))


def loss_per_sample(
    objective: Objective,
    output: Tensor,
    clean: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    kept: Tensor | None = None,
) -> Tensor:
    """Velocity loss of each sample, mean over its pixels, or over those of its patches that are
    `kept` `(batch, tokens)`; `(batch,)`, fp32."""
    if objective.prediction == "v":
        return mean_error(output.float(), noise - clean, kept)
    weight = 1.0 / timesteps.clamp_min(objective.timestep_floor).square()
    return weight * mean_error(output.float(), clean, kept)


def mean_error(found: Tensor, wanted: Tensor, kept: Tensor | None = None) -> Tensor:
    """Mean square of the difference of each sample, `(batch,)`, of its `kept` patches alone."""
    error = mse_loss(found, wanted, reduction="none")
    if kept is None:
        return error.mean(dim=(1, 2, 3))
    marks = over_patches(kept, error.shape[2], error.shape[3])
    counted = marks.sum(dim=(1, 2, 3)) * error.shape[1]
    # Not a product: what is predicted at a dropped patch must not count, whatever it is.
    return torch.where(marks, error, 0.0).sum(dim=(1, 2, 3)) / counted


def over_patches(kept: Tensor, height: int, width: int) -> Tensor:
    """Bool `(batch, 1, height, width)` of `(batch, tokens)`, whose tokens are square patches in
    rows."""
    side = round((height * width / kept.shape[1]) ** 0.5)
    grid = kept.reshape(len(kept), 1, height // side, 1, width // side, 1)
    return grid.expand(-1, -1, -1, side, -1, side).reshape(len(kept), 1, height, width)


def over_images(per_sample: Tensor) -> Tensor:
    """`(batch, 1, 1, 1)` of `(batch,)`."""
    return per_sample[:, None, None, None]
