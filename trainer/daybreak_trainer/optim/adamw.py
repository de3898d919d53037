"""AdamW (arXiv 1711.05101) over a sharded model."""

from __future__ import annotations

import torch
from torch import nn

from daybreak_trainer.recipe.model import Optimizer


def build(model: nn.Module, recipe: Optimizer) -> torch.optim.AdamW:
    """Weight decay on matrices only: gains and biases have no scale to hold down."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.epsilon,
        fused=True,
    )
