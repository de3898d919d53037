"""The recipe: everything that decides what a run learns, as frozen data.

A `Recipe` is always complete: it is a preset with the run's overrides laid over it (`resolve.py`).
Nothing here needs torch, so the operator validates a recipe with the code that trains it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe import rules
from daybreak_trainer.recipe.base import RecipeModel
from daybreak_trainer.recipe.denoiser import Denoiser, Latent
from daybreak_trainer.recipe.objective import Objective
from daybreak_trainer.recipe.optimizer import Ema, Optimizer, Schedule
from daybreak_trainer.recipe.stages import Sampling, Stage
from daybreak_trainer.recipe.text import Caption, Text


class Recipe(RecipeModel):
    """A complete recipe. Its hash names it; two runs with one hash train the same way."""

    preset: str = Field(description="The preset the recipe started from.")
    seed: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="Seeds data order, noise, timesteps, weights."
    )
    denoiser: Denoiser
    latent: Latent | None = Field(
        default=None, description="Work on an autoencoder's latents; null for pixels."
    )
    text: Text
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    ema: Ema
    stages: tuple[Stage, ...] = Field(
        min_length=1, max_length=16, description="In order; a list here replaces the preset's."
    )
    sampling: Sampling
    precision: Literal["auto", "bf16", "fp32"] = Field(
        description="Compute precision; auto is bf16 where every rank's device has it, else fp32."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        rules.check(self)
        return self

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one token stands for."""
        downsampling = 1 if self.latent is None else self.latent.downsampling
        return downsampling * self.denoiser.patch_size

    def captions(self, stage: Stage) -> tuple[Caption, ...]:
        """Those of a sample that are drawn from in a stage."""
        return stage.captions or self.text.captions

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """Columns of the data that captions are drawn from, in any stage."""
        mixes = [self.captions(stage) for stage in self.stages]
        return tuple(dict.fromkeys(caption.column for mix in mixes for caption in mix))

    def tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of this size in pixels."""
        return (height // self.pixels_per_token) * (width // self.pixels_per_token)

    @property
    def is_fixed(self) -> bool:
        """Whether every stage's steps are given: nothing is planned, and the run is exactly
        reproducible whatever the speed."""
        return all(stage.steps is not None for stage in self.stages)

    def to_json(self) -> str:
        """Canonical JSON: the text that `hash` is taken of."""
        return self.model_dump_json(by_alias=True)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
