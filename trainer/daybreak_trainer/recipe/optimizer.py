"""What turns gradients into weights, how fast, and which average of them is kept."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe.base import (
    Count,
    Decay,
    NotNegative,
    Positive,
    PositiveInt,
    RecipeModel,
    Share,
)


class Optimizer(RecipeModel):
    """What turns gradients into updates."""

    kind: Literal["adamw", "muon"] = Field(
        description="adamw for all parameters; or muon for the matrices of the blocks (K. Jordan "
        "2024, scaled as in arXiv 2502.16982, so that learningRate is AdamW's) and adamw for the "
        "rest."
    )
    learning_rate: Positive = Field(description="Highest rate, between warm-up and cooldown.")
    adamw_learning_rate: Positive | None = Field(
        default=None, description="muon: the rate of adamw's part; null for learningRate."
    )
    momentum: Decay = Field(default=0.95, description="muon: decay of its Nesterov momentum.")
    beta1: Decay = Field(description="adamw: decay of the mean gradient.")
    beta2: Decay = Field(description="adamw: decay of the mean squared gradient.")
    epsilon: Positive = Field(description="adamw: added to the divisor.")
    weight_decay: NotNegative = Field(
        description="Decoupled decay of matrices, a step, times the learning rate."
    )
    clip_norm: Positive | None = Field(
        default=None, description="Global gradient norm; null to not clip."
    )


class Schedule(RecipeModel):
    """Warm-up, stable, decay (arXiv 2405.18392): linear, constant, then 1 - sqrt to zero."""

    warmup_steps: Count = Field(description="Steps in which the rate rises to its highest.")
    cooldown_share: Share = Field(
        description="Share of the run, at its end, in which the rate falls to 0: of its steps, or, "
        "where stages have shares of a budget, of its time."
    )


Width = Annotated[float, Field(gt=0, le=0.28)]
"""Of a power function: wider than 0.2887 there is none."""


class PowerAverages(RecipeModel):
    """Averages from which one of any length is put together after the run (EDM2, arXiv
    2312.02696, section 3): `daybreak ema`."""

    deviations: tuple[Width, ...] = Field(
        default=(0.05, 0.10),
        min_length=2,
        max_length=2,
        description="Widths of the two averages, as a share of the time trained so far.",
    )
    snapshots: PositiveInt = Field(
        default=16, description="How many times both are kept in the course of the run."
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len(set(self.deviations)) < len(self.deviations):
            raise ValueError("deviations: two equal averages span no more than one; make them two")
        return self


class Ema(RecipeModel):
    """The averaged weights, which are exported and judged."""

    decay: Share = Field(description="Per-step decay of the averaged weights, with warm-up.")
    power: PowerAverages | None = Field(
        default=None, description="Power-function averages for `daybreak ema`; null is off."
    )
