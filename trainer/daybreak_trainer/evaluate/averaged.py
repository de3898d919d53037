"""The averaged weights in the sharded model, for as long as they are judged.

Each rank swaps its own shards with those of its average, and swaps them back: nothing is gathered,
nothing is copied to anywhere else, and what comes back are the very bits, for both are fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from daybreak_trainer.optim.ema import Ema


@contextmanager
def averaged(model: nn.Module, ema: Ema) -> Iterator[None]:
    """While the block runs `model` has the averaged weights, is in evaluation mode and computes
    without compiled kernels, whose shapes are those of training. Weights and average must not be
    being copied elsewhere meanwhile (`Checkpointer.before_update`).

    Raises:
        ValueError: a weight is not fp32, so swapping would round.
    """
    was_training = model.training
    _swap(model, ema)
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)
        _swap(model, ema)


@torch.no_grad()
def _swap(model: nn.Module, ema: Ema) -> None:
    _let_go(model)  # where it is gathered the parameters are not the shards
    for name, parameter in model.named_parameters():
        weight, average = _local(parameter), _local(ema.shadow[name])
        if weight.dtype != average.dtype:
            raise ValueError(f"{name} is {weight.dtype}, its average {average.dtype}")
        kept = weight.clone()
        weight.copy_(average)
        average.copy_(kept)


def _let_go(model: nn.Module) -> None:
    """Of what FSDP has gathered: its root's weights it keeps after a forward pass that no backward
    one follows, and would compute with them again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
