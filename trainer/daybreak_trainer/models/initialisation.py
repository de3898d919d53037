"""What weights start from, for every family: `recipe.denoiser.initialisation`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import cast

import torch
from torch import Tensor, nn

from daybreak_trainer.recipe.denoiser import Denoiser

_MUP_WIDTH = 256
"""Width at which muP's learning rates are those of the recipe."""

_Weighted = nn.Linear | nn.Conv2d


def start(recipe: Denoiser, module: nn.Module, added: Iterable[Sequence[nn.Module]]) -> None:
    """Draws or scales the weights of `module` as the recipe wants; `added` has, for each block in
    order, the layers whose output is added to the token stream."""
    if recipe.initialisation == "depth-scaled":
        for number, layers in enumerate(added):
            for layer in layers:
                cast(Tensor, layer.weight).data.div_(sqrt(2 * (number + 1)))
    elif recipe.initialisation == "mup":
        for layer in module.modules():
            if isinstance(layer, _Weighted):
                fan_in = layer.weight[0].numel()
                nn.init.normal_(layer.weight, std=1 / sqrt(fan_in))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def mup_factor(recipe: Denoiser) -> float:
    """On the learning rate of matrices whose inputs grow with the width, for Adam: one over the
    width (Tensor Programs V, arXiv 2203.03466, table 8)."""
    return _MUP_WIDTH / recipe.hidden_size if recipe.initialisation == "mup" else 1.0


@torch.no_grad()
def zero(*layers: nn.Module) -> None:
    """Weight and bias."""
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.zero_()


@torch.no_grad()
def zero_modulation(recipe: Denoiser, vectors: Tensor) -> None:
    """Six vectors, or matrices to them, on top of each other: shift, scale and gate of attention
    and then of the MLP. All of them start at zero, or the gates alone."""
    parts = vectors.chunk(6)
    for part in parts if recipe.zero_modulation == "all" else (parts[2], parts[5]):
        part.zero_()
