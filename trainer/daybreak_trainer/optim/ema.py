"""Averaged weights: what is exported and judged. Each rank averages its own shard, in fp32, so an
update needs no communication."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a (sharded) model's parameters, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._model = model
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().clone().float() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after `step` optimizer steps.

        The decay warms up as `(1 + step) / (10 + step)`: the first weights are noise, and a long
        average would remember them.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        parameters = [p.detach().float() for p in self._model.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), parameters, 1.0 - decay)
