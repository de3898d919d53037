"""The recipe: everything that decides what a run learns, as frozen data.

A `Recipe` is always complete: it is a preset with the run's overrides laid over it (`resolve.py`).
Nothing here needs torch, so the operator validates a recipe with the code that trains it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are refused by name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class Denoiser(RecipeModel):
    """The denoiser's architecture: `diffusers.PRXTransformer2DModel` in pixel space."""

    kind: Literal["prx"] = Field(description="Family of the denoiser.")
    hidden_size: PositiveInt = Field(description="Width of the token stream.")
    depth: PositiveInt = Field(description="Number of transformer blocks.")
    heads: PositiveInt = Field(
        description="Attention heads; hiddenSize / heads must be a multiple of 4."
    )
    patch_size: PositiveInt = Field(
        description="Side of a patch in pixels; must divide every resolution."
    )
    mlp_ratio: Positive = Field(description="Width of the gated MLP over hiddenSize.")
    bottleneck_size: PositiveInt | None = Field(
        default=None,
        description="Two-layer patch embedding through this width (JiT); null for one layer.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide hiddenSize ({self.hidden_size})")
        if (self.hidden_size // self.heads) % 4:
            raise ValueError(
                f"hiddenSize / heads is {self.hidden_size // self.heads}; the two rotary axes need "
                "a multiple of 4"
            )
        return self


class Text(RecipeModel):
    """The text tower. `joint` trains a small encoder and a word-level tokenizer with the denoiser;
    `pretrained` freezes a Hugging Face encoder."""

    kind: Literal["joint", "pretrained"] = Field(
        description="Train a small encoder jointly, or load one."
    )
    path: str | None = Field(
        default=None, description="pretrained: a local folder or a Hugging Face repository."
    )
    max_tokens: PositiveInt = Field(description="Captions are padded or cut to this many tokens.")
    hidden_size: PositiveInt | None = Field(
        default=None, description="joint: width of the encoder."
    )
    depth: PositiveInt | None = Field(default=None, description="joint: number of layers.")
    heads: PositiveInt | None = Field(default=None, description="joint: attention heads.")
    caption_dropout: Share = Field(
        description="Share of captions replaced by the empty prompt, for classifier-free guidance."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "pretrained" and not self.path:
            raise ValueError(
                "kind: pretrained needs path, a local folder or a Hugging Face repository"
            )
        if self.kind == "joint":
            if self.path:
                raise ValueError("kind: joint trains its own encoder and takes no path")
            if not (self.hidden_size and self.depth and self.heads):
                raise ValueError("kind: joint needs hiddenSize, depth and heads")
            if self.hidden_size % self.heads:
                raise ValueError(
                    f"heads ({self.heads}) must divide hiddenSize ({self.hidden_size})"
                )
        return self


class Objective(RecipeModel):
    """Flow matching with x-prediction and v-loss (JiT, arXiv 2511.13720).

    Time runs from t=0, data, to t=1, noise.
    """

    prediction: Literal["x"] = Field(description="What the network puts out: the clean image.")
    timestep_mean: float = Field(description="Mean of the logit-normal timestep distribution.")
    timestep_std: Positive = Field(
        description="Standard deviation of the logit-normal distribution."
    )
    timestep_uniform_share: Share = Field(description="Share of timesteps drawn uniformly instead.")
    timestep_shift: Positive = Field(description="Shift alpha: t = alpha u / (1 + (alpha - 1) u).")
    timestep_floor: Positive = Field(description="Smallest t in the loss weight 1/t^2.")
    noise_scale: Positive = Field(
        description="Standard deviation of the noise; images are in -1..1."
    )


class Optimizer(RecipeModel):
    """What turns gradients into updates."""

    kind: Literal["adamw", "muon"] = Field(
        description="adamw for all parameters; or muon for the matrices of the blocks (K. Jordan "
        "2024, scaled as in arXiv 2502.16982, so that learningRate is AdamW's) and adamw for the "
        "rest."
    )
    learning_rate: Positive = Field(description="Highest rate, between warm-up and cooldown.")
    momentum: Share = Field(default=0.95, description="muon: decay of its Nesterov momentum.")
    beta1: Share = Field(description="adamw: decay of the mean gradient.")
    beta2: Share = Field(description="adamw: decay of the mean squared gradient.")
    epsilon: Positive = Field(description="adamw: added to the divisor.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        description="Decoupled decay of matrices, a step, times the learning rate."
    )
    clip_norm: Positive | None = Field(
        default=None, description="Global gradient norm; null to not clip."
    )


class Schedule(RecipeModel):
    """Warm-up, stable, decay (arXiv 2405.18392): linear, constant, then 1 - sqrt to zero."""

    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        description="Steps in which the rate rises to its highest."
    )
    cooldown_share: Share = Field(
        description="Share of all steps, at the end, in which the rate falls to 0."
    )


class Ema(RecipeModel):
    """The averaged weights, which are exported and judged."""

    decay: Share = Field(description="Per-step decay of the averaged weights, with warm-up.")


class Stage(RecipeModel):
    """A stretch of training at one resolution and global batch."""

    resolution: PositiveInt = Field(description="Side of the square images in pixels.")
    steps: PositiveInt = Field(description="Optimizer steps of this stage.")
    batch_size: PositiveInt = Field(description="Global batch: images a step over all ranks.")


class Sampling(RecipeModel):
    """How samples are drawn from the finished model (Euler, classifier-free guidance)."""

    steps: PositiveInt = Field(description="Euler steps an image.")
    guidance: Annotated[float, Field(ge=1)] = Field(
        description="Weight of the prompt; 1 is without guidance."
    )
    shift: Positive = Field(description="Shift of the timesteps towards noise; 1 is none.")


class Recipe(RecipeModel):
    """A complete recipe. Its hash names it; two runs with one hash train the same way."""

    preset: str = Field(description="The preset the recipe started from.")
    seed: Annotated[int, Field(ge=0, le=2**53)] = Field(
        description="Seeds data order, noise, timesteps, weights."
    )
    denoiser: Denoiser
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
        description="Compute precision; auto is bf16 where the device has it, else fp32."
    )

    @model_validator(mode="after")
    def _patches_divide(self) -> Self:
        for number, stage in enumerate(self.stages):
            if stage.resolution % self.denoiser.patch_size:
                raise ValueError(
                    f"stages[{number}].resolution ({stage.resolution}) must be a multiple of "
                    f"denoiser.patchSize ({self.denoiser.patch_size})"
                )
        if len({stage.resolution for stage in self.stages}) > 1:
            raise ValueError("stages: one run has one resolution so far; give every stage the same")
        return self

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """Index (0-based) and stage that optimizer step `step` (0-based) belongs to."""
        end = 0
        for index, stage in enumerate(self.stages):
            end += stage.steps
            if step < end:
                return index, stage
        return len(self.stages) - 1, self.stages[-1]

    def samples_at(self, step: int) -> int:
        """Samples seen when `step` optimizer steps are done."""
        samples = 0
        for stage in self.stages:
            done = min(step, stage.steps)
            samples += done * stage.batch_size
            step -= done
        return samples

    def to_json(self) -> str:
        """Canonical JSON: the text that `hash` is taken of."""
        return self.model_dump_json(by_alias=True)

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]
