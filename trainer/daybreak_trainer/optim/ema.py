"""Averaged weights: what is exported and judged. Each rank averages its own shard, in fp32, so an
update needs no communication."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Exponential moving average of a (sharded) model's parameters, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._model = model
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().clone().float() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, step: int, found_inf: Tensor | None = None) -> None:
        """Fold in the weights after `step` optimizer steps; not where `found_inf`, a scalar on the
        device, is 1.

        The decay warms up as `(1 + step) / (10 + step)`: the first weights are noise, and a long
        average would remember them.
        """
        share = 1.0 - min(self._decay, (1 + step) / (10 + step))
        # Without a gradient `to_local` is a look at the shard; `detach` would go through DTensor.
        averages = [_local(average) for average in self.shadow.values()]
        weights = [_local(p).float() for p in self._model.parameters()]
        if found_inf is None:
            torch._foreach_lerp_(averages, weights, share)
            return
        # The weights are finite, for a step that is skipped left them alone: nothing times their
        # difference to the average is nothing.
        taken = share * (1.0 - found_inf)
        if not found_inf.is_cuda:
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, taken)
            return
        # No kernel takes all tensors and a share from the device; three of these beat one a tensor.
        differences = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(differences, taken)
        torch._foreach_add_(averages, differences)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
