"""Stretches of training: how long, at which resolution, with which tricks."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe.base import Count, Positive, PositiveInt, RecipeModel
from daybreak_trainer.recipe.text import Caption


class Stage(RecipeModel):
    """A stretch of training at one resolution and global batch."""

    resolution: PositiveInt = Field(description="Side of the square images in pixels.")
    steps: PositiveInt | None = Field(
        default=None, description="Optimizer steps of this stage; or give its share."
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Share of the run's training time; steps follow from the images/s measured.",
    )
    batch_size: PositiveInt = Field(description="Global batch: images a step over all ranks.")
    timestep_shift: Positive | None = Field(
        default=None, description="objective.timestepShift in this stage; more pixels want more."
    )
    learning_rate_factor: Positive = Field(
        default=1.0, description="On optimizer.learningRate in this stage."
    )
    warmup_steps: Count = Field(
        default=0,
        description="Steps in which the rate rises again at the stage's start; the first stage has "
        "schedule.warmupSteps.",
    )
    captions: tuple[Caption, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="text.captions in this stage: short ones are mixed in at the end (PRX).",
    )
    alignment: bool = Field(default=True, description="false: without objective.alignment.")
    routing: bool = Field(default=True, description="false: without objective.routing.")
    masking: bool = Field(default=True, description="false: without objective.masking.")
    perceptual: bool = Field(default=True, description="false: without objective.perceptual.")
    contrast: bool = Field(default=True, description="false: without objective.contrast.")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.share is None):
            raise ValueError("give either steps or share, a share of the run's training time")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmupSteps ({self.warmup_steps}) must be below steps ({self.steps}): the stage "
                "would end before its learning rate has risen"
            )
        return self


class Sampling(RecipeModel):
    """How samples are drawn from the finished model (Euler, classifier-free guidance)."""

    steps: PositiveInt = Field(description="Euler steps an image.")
    guidance: Annotated[float, Field(ge=1)] = Field(
        description="Weight of the prompt; 1 is without guidance."
    )
    shift: Positive = Field(description="Shift of the timesteps towards noise; 1 is none.")
