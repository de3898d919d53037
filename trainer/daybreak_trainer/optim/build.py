"""The optimizers of a recipe: AdamW for everything, or Muon for the blocks' matrices and AdamW for
the rest. Both share the learning rate: Muon's updates are scaled to AdamW's size."""

from __future__ import annotations

import torch
from torch import nn

from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.optim.muon import Matrix, Muon
from daybreak_trainer.recipe.optimizer import Optimizer


def build(model: TextToImage, recipe: Optimizer) -> list[torch.optim.Optimizer]:
    """Every trained parameter is in exactly one of them."""
    parts = model.block_matrices() if recipe.kind == "muon" else {}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rest = [p for name, p in trained.items() if name not in parts]
    optimizers: list[torch.optim.Optimizer] = [_adamw(rest, recipe)]
    if parts:
        optimizers.append(
            Muon(
                [Matrix(trained[name], number) for name, number in parts.items()],
                learning_rate=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
        )
    return optimizers


def _adamw(parameters: list[nn.Parameter], recipe: Optimizer) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), with weight decay on matrices only: gains and biases have no scale
    to hold down."""
    groups = (
        ([p for p in parameters if p.ndim >= 2], recipe.weight_decay),
        ([p for p in parameters if p.ndim < 2], 0.0),
    )
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay} for params, decay in groups if params],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        fused=True,
    )
