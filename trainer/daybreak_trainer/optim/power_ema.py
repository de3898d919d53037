"""Averages whose length grows with the run, kept so that one of any length can be put together from
snapshots of them afterwards (`power_profile`, `daybreak ema`).

Source: EDM2 (arXiv 2312.02696), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from daybreak_trainer.optim.ema import Shadow, fold, locals_of, shadow_of, weights_of
from daybreak_trainer.optim.power_profile import gamma


class PowerEma:
    """Power-function averages of a (sharded) model's parameters, one for each of `deviations`.

    Time is counted in samples that the weights were trained on, so batch sizes may change. Each
    rank averages its own shard, in fp32.
    """

    def __init__(self, model: nn.Module, deviations: Sequence[float]) -> None:
        self._model = model
        self._exponents = tuple(gamma(deviation) + 1.0 for deviation in deviations)
        self.shadows: dict[float, Shadow] = {
            deviation: shadow_of(model) for deviation in deviations
        }
        device = next(model.parameters()).device
        self.samples = torch.zeros((), dtype=torch.float64, device=device)
        """Samples of steps that were taken: on the device, which alone knows which were."""

    @torch.no_grad()
    def update(self, samples: int, found_inf: Tensor) -> None:
        """Folds in the weights after a step on so many `samples`; where `found_inf`, a scalar on
        the device, is 1, the step was not taken, and neither averages nor clock move.

        The decay `(1 - samples / t)^(gamma + 1)` makes the average at t exactly that of its
        profile over weights that stood still for each step.
        """
        taken = samples * (1.0 - found_inf.double())
        self.samples += taken
        # Before the first step is taken, t is 0 and the weights are still those averaged.
        rest = torch.log1p(-(taken / self.samples.clamp_min(samples)))
        weights = weights_of(self._model)
        for exponent, shadow in zip(self._exponents, self.shadows.values(), strict=True):
            share = -torch.expm1(exponent * rest)
            fold(locals_of(shadow), weights, share.float())

    def tensors(self) -> dict[str, object]:
        """All of its state, for a checkpoint: the live tensors, not copies."""
        averages: dict[str, object] = {
            f"{number}": shadow for number, shadow in enumerate(self.shadows.values())
        }
        return averages | {"samples": self.samples}
