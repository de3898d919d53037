"""Modules that are trained beside the model, help it learn, and are never exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daybreak_trainer.models.tricks import put_back
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.objective import Alignment


class Projector(nn.Module):
    """From hidden states to a teacher's features: three layers a token (REPA, arXiv 2410.06940), or
    a 3 × 3 convolution over the grid (iREPA, arXiv 2512.10794)."""

    def __init__(self, recipe: Alignment, hidden_size: int, teacher_width: int) -> None:
        super().__init__()
        self.width = teacher_width
        wide = recipe.projector_size
        self.layers: nn.Module
        if recipe.projector == "conv":
            self.layers = nn.Conv2d(hidden_size, teacher_width, 3, padding=1)
        else:
            self.layers = nn.Sequential(
                nn.Linear(hidden_size, wide),
                nn.SiLU(),
                nn.Linear(wide, wide),
                nn.SiLU(),
                nn.Linear(wide, teacher_width),
            )

    def forward(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """`(batch, tokens, teacher width)`; of all tokens of the grid where it is a convolution."""
        if isinstance(self.layers, nn.Conv2d):
            image = hidden.mT.reshape(len(hidden), -1, *grid)
            return self.layers(image).flatten(2).mT  # type: ignore[no-any-return]
        projected: Tensor = self.layers(hidden)
        return projected


class Fusion(nn.Module):
    """SPRINT's end of the deep path (arXiv 2510.21986, section 3): `Linear([shallow, deep])`, a
    learned token in place of deep states that are not there.

    It starts as the mean of both, with which a path of zero gates changes no token's direction.

    The published method ends with a short stage of all tokens, and so does a recipe here
    (`recipe.rules`). Its authors keep the fusion in that stage and when they draw; stock diffusers
    has none, and no weights of a block can stand for it, because a later block does not see the
    shallow states. So the last stage goes without it at once, and learns to.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * hidden_size, hidden_size)
        self.token = nn.Parameter(torch.zeros(hidden_size))
        with torch.no_grad():
            half = 0.5 * torch.eye(hidden_size)
            self.linear.weight.copy_(torch.cat((half, half), dim=1))
            self.linear.bias.zero_()

    def forward(self, shallow: Tensor, deep: Tensor, visible: Tensor | None) -> Tensor:
        """`(batch, tokens, hidden)`; `deep` is of tokens `visible`, None for all."""
        if visible is not None:
            missing = self.token.to(deep.dtype).expand_as(shallow)
            deep = put_back(missing, visible, deep)
        fused: Tensor = self.linear(torch.cat((shallow, deep), dim=2))
        return fused


def build(recipe: Recipe, teacher_width: int | None) -> nn.ModuleDict:
    """What the recipe's tricks need: `projector`, `fusion`. Draws of the process's random numbers.

    `teacher_width` is that of the teacher's features; None where nothing is aligned.
    """
    made = nn.ModuleDict()
    objective, hidden_size = recipe.objective, recipe.denoiser.hidden_size
    if objective.alignment is not None and teacher_width is not None:
        made["projector"] = Projector(objective.alignment, hidden_size, teacher_width)
    if objective.routing is not None and objective.routing.kind == "sprint":
        made["fusion"] = Fusion(hidden_size)
    return made
