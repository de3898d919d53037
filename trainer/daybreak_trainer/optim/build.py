"""The optimizers of a recipe: AdamW for everything, or Muon for the blocks' matrices and AdamW for
the rest. Both share the learning rate, for Muon's updates are scaled to AdamW's size, unless the
recipe has another one for AdamW's part.

Each parameter group has a `factor`: its learning rate is the step's times that.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import nn

from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.optim.muon import Matrix, Muon
from daybreak_trainer.recipe.optimizer import Optimizer


def build(model: TextToImage, recipe: Optimizer, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Every trained parameter is in exactly one of them. `dtype` is what the run computes in: Muon
    iterates in it; states stay as the parameters are."""
    parts = model.block_matrices() if recipe.kind == "muon" else {}
    factors = model.learning_rate_factors()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rest = {name: p for name, p in trained.items() if name not in parts}
    optimizers: list[torch.optim.Optimizer] = [_adamw(rest, factors, recipe)]
    if parts:
        # AdamW's update of a matrix grows with the width as its gradient's sum does; Muon's, having
        # AdamW's size but equal singular values, with the width's root (spectral condition, arXiv
        # 2310.17813).
        matrices = [
            Matrix(trained[name], number, factor=sqrt(factors.get(name, 1.0)))
            for name, number in parts.items()
        ]
        optimizers.append(
            Muon(
                matrices,
                learning_rate=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                dtype=dtype,
            )
        )
    return optimizers


def _adamw(
    parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float], recipe: Optimizer
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), with weight decay on matrices only: gains and biases have no scale
    to hold down, nor has a table of them. The decay does not follow muP's factors."""
    rate = 1.0
    if recipe.kind == "muon" and recipe.adamw_learning_rate is not None:
        rate = recipe.adamw_learning_rate / recipe.learning_rate
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = factors.get(name, 1.0)
        is_matrix = parameter.ndim >= 2 and name.endswith("weight")  # not Sana's scale_shift_table
        decay = recipe.weight_decay / factor if is_matrix else 0.0
        groups.setdefault((rate * factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "factor": factor, "weight_decay": decay}
            for (factor, decay), members in groups.items()
        ],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        fused=True,
    )
