"""Which tokens pass by which blocks while training, and what is read on the way.

Which ones is decided by `scores`, drawn for each token of a sample: the smallest are left out.
Being an input, they are the same when a block is computed again, and on any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.objective import Masking, Routing
from daybreak_trainer.recipe.stages import Stage


@dataclass(frozen=True)
class Tricks:
    """What a stage has switched on: fixed while it lasts, so shapes are too."""

    routing: Routing | None = None
    masking: Masking | None = None
    capture: int | None = None
    """The block whose output is wanted."""

    @classmethod
    def of(cls, recipe: Recipe, stage: Stage) -> Tricks:
        objective = recipe.objective.in_stage(stage)
        aligned = objective.alignment
        return cls(objective.routing, objective.masking, None if aligned is None else aligned.layer)

    @property
    def of_evaluation(self) -> Tricks:
        """What is left of them where the weights are judged: without scores no token is left out,
        but SPRINT's fusion belongs to the model for as long as it is trained with it."""
        fused = self.routing is not None and self.routing.kind == "sprint"
        return Tricks(self.routing) if fused else NONE


NONE = Tricks()


@dataclass(frozen=True)
class Prediction:
    """What the network puts out for a batch."""

    output: Tensor
    """`(batch, channels, height, width)`."""
    hidden: Tensor | None = None
    """`(batch, tokens, width)`: output of block `Tricks.capture`, of the tokens that it saw, in the
    teacher's width where the model has a projector."""
    visible: Tensor | None = None
    """`(batch, tokens)` int64, ascending: which tokens `hidden` is of; None for all."""
    kept: Tensor | None = None
    """Bool `(batch, image tokens)`: those that count in the loss; None for all. `output` is zero
    elsewhere."""


def left_over(tokens: int, share: float) -> int:
    """How many of `tokens` there are without a `share` of them: at least one stays and one goes."""
    return tokens - min(max(round(share * tokens), 1), tokens - 1)


def visible_tokens(scores: Tensor, share: float) -> Tensor:
    """Tokens that are left when a `share` of them, those of the smallest scores `(batch, tokens)`,
    is not: `(batch, count)` int64, ascending."""
    tokens = scores.shape[1]
    order = torch.argsort(scores, dim=1, stable=True)
    return order[:, tokens - left_over(tokens, share) :].sort(dim=1).values


def gather(tokens: Tensor, visible: Tensor) -> Tensor:
    """`(batch, count, width)` of `(batch, tokens, width)`."""
    return tokens.gather(1, visible[:, :, None].expand(-1, -1, tokens.shape[2]))


def put_back(into: Tensor, visible: Tensor, values: Tensor) -> Tensor:
    """`into` `(batch, tokens, width)` with `values` `(batch, count, width)` at `visible`."""
    return into.scatter(1, visible[:, :, None].expand(-1, -1, values.shape[2]), values)


def spread(values: Tensor, visible: Tensor, tokens: int) -> Tensor:
    """`values` `(batch, count, width)` at `visible` of `(batch, tokens, width)`, else zero."""
    return put_back(values.new_zeros(len(values), tokens, values.shape[2]), visible, values)


def marked(visible: Tensor, tokens: int) -> Tensor:
    """Bool `(batch, tokens)`: whether a token is among `visible`."""
    nowhere = torch.zeros(len(visible), tokens, dtype=torch.bool, device=visible.device)
    return nowhere.scatter(1, visible, value=True)
