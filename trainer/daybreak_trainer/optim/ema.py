"""Averaged weights: what is exported and judged. Each rank averages its own shard, in fp32, so an
update needs no communication."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Shadow = dict[str, Tensor]
"""An average of a (sharded) model's parameters, by name."""


class Ema:
    """Exponential moving average of a (sharded) model's parameters, by name."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._model = model
        self.shadow: Shadow = shadow_of(model)

    @torch.no_grad()
    def update(self, step: int, found_inf: Tensor | None = None) -> None:
        """Fold in the weights after `step` optimizer steps; not where `found_inf`, a scalar on the
        device, is 1.

        The decay warms up as `(1 + step) / (10 + step)`: the first weights are noise, and a long
        average would remember them.
        """
        share = 1.0 - min(self._decay, (1 + step) / (10 + step))
        if found_inf is None:
            torch._foreach_lerp_(locals_of(self.shadow), weights_of(self._model), share)
            return
        # The weights are finite, for a step that is skipped left them alone: nothing times their
        # difference to the average is nothing.
        fold(locals_of(self.shadow), weights_of(self._model), share * (1.0 - found_inf))


def shadow_of(model: nn.Module) -> Shadow:
    """The parameters as they are now, in fp32, sharded as they are."""
    return {
        name: parameter.detach().clone().float() for name, parameter in model.named_parameters()
    }


def locals_of(shadow: Shadow) -> list[Tensor]:
    """This rank's parts of an average."""
    return [_local(average) for average in shadow.values()]


def weights_of(model: nn.Module) -> list[Tensor]:
    """This rank's parts of the parameters, in fp32 and in the order of `locals_of`."""
    # Without a gradient `to_local` is a look at the shard; `detach` would go through DTensor.
    return [_local(parameter).float() for parameter in model.parameters()]


def fold(averages: list[Tensor], weights: list[Tensor], share: Tensor) -> None:
    """Moves averages towards the weights, in place, by a `share` of the way: a scalar on their
    device, fp32."""
    if not share.is_cuda:
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share)
        return
    # No kernel takes all tensors and a share from the device; three of these beat one a tensor.
    differences = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(differences, share)
    torch._foreach_add_(averages, differences)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
