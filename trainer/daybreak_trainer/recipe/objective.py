"""What the denoiser is asked to learn, and the tricks that make it learn sooner.

Time runs from t=0, data, to t=1, noise: `x_t = (1 - t) x + t noise`, velocity `v = noise - x`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe.base import (
    Count,
    NotNegative,
    Positive,
    PositiveInt,
    RealShare,
    RecipeModel,
    Share,
    Source,
)
from daybreak_trainer.recipe.stages import Stage


class Alignment(RecipeModel):
    """Hidden states of a block are drawn towards a vision model's features of the clean image
    (REPA, arXiv 2410.06940; iREPA, arXiv 2512.10794)."""

    teacher: Source = Field(
        description="Any vision transformer of Hugging Face: a local folder or a repository, such "
        "as facebook/dinov2-with-registers-base."
    )
    layer: Count = Field(description="Block whose output is aligned, from 0.")
    weight: NotNegative = Field(description="Of 1 - cosine in the loss; 0.5 in the paper.")
    projector: Literal["mlp", "conv"] = Field(
        default="mlp",
        description="From hidden states to features: three layers a token, or iREPA's 3 x 3 "
        "convolution, which needs the whole grid and so a layer that is not routed.",
    )
    projector_size: PositiveInt = Field(default=2048, description="mlp: width of its layers.")
    spatial_normalisation: Share = Field(
        default=0.0,
        description="iREPA: share of the mean over the tokens that is taken off the features, "
        "which then get unit deviation; 0 leaves them as they are.",
    )


class Routing(RecipeModel):
    """Part of the tokens passes by the blocks in the middle while training."""

    kind: Literal["tread", "sprint"] = Field(
        description="tread: routed tokens come back as they were (arXiv 2501.04765); sprint: the "
        "blocks' output is fused with their input, and a learned token stands in for those that "
        "were dropped (arXiv 2510.21986). Stock diffusers has no such fusion, so with sprint the "
        "last stage needs routing: false, in which the model learns to do without."
    )
    share: RealShare = Field(description="Tokens that pass by: 0.5 for tread, 0.75 for sprint.")
    first: Count = Field(description="First block that is passed by, from 0.")
    last: Count = Field(description="Last block that is passed by.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first > self.last:
            raise ValueError(f"first ({self.first}) must not be behind last ({self.last})")
        return self


class Masking(RecipeModel):
    """Patches are dropped behind a mixer that has seen them all; the loss is over those that are
    kept (deferred masking, MicroDiT, arXiv 2407.15811). The mixer is the denoiser's first blocks,
    so that stock diffusers has it too."""

    share: RealShare = Field(description="Patches that are dropped: 0.75 in the paper.")
    mixer_depth: PositiveInt = Field(
        description="Blocks of the patch mixer, the first of the denoiser's, such as 4."
    )


class Perceptual(RecipeModel):
    """A distance that a vision model sees between the predicted and the clean image."""

    kind: Literal["lpips", "features"] = Field(
        description="lpips: VGG's, calibrated on people's judgements (arXiv 1801.03924); features: "
        "1 - cosine of a vision transformer's patch features, such as DINOv2's."
    )
    teacher: Source = Field(
        description="lpips: a folder or repository with torchvision's vgg16.safetensors and the "
        "calibration, lpips.safetensors, under the names of its authors' vgg.pth; features: a "
        "vision transformer of Hugging Face."
    )
    weight: NotNegative = Field(description="In the loss: 0.1 for lpips, 0.01 for features (PRX).")
    size: PositiveInt | None = Field(
        default=None,
        description="Images are resized to this side first: null for half of it (lpips) or the "
        "teacher's own size (features).",
    )
    max_timestep: Share = Field(
        default=1.0, description="Only samples with less noise than this are compared."
    )


class Objective(RecipeModel):
    """Flow matching with the velocity loss (arXiv 2209.03003, 2403.03206)."""

    prediction: Literal["x", "v"] = Field(
        description="What the network puts out: the clean image (JiT, arXiv 2511.13720) or the "
        "velocity."
    )
    timestep_mean: float = Field(description="Mean of the logit-normal timestep distribution.")
    timestep_std: Positive = Field(
        description="Standard deviation of the logit-normal distribution (arXiv 2403.03206)."
    )
    timestep_uniform_share: Share = Field(
        description="Share of timesteps drawn uniformly instead, and not shifted."
    )
    timestep_shift: Positive = Field(
        description="Shift alpha: t = alpha u / (1 + (alpha - 1) u); more than 1 leans towards "
        "noise. A stage may set its own."
    )
    stratified: bool = Field(
        default=False,
        description="The timesteps of a global batch are spread evenly over the distribution, one "
        "in each of as many equal parts, so that the loss varies less from step to step.",
    )
    timestep_floor: Positive = Field(description="x: smallest t in the loss weight 1/t^2.")
    noise_scale: Positive = Field(
        description="Standard deviation of the noise; images are in -1..1."
    )
    alignment: Alignment | None = Field(default=None, description="REPA or iREPA; null is off.")
    routing: Routing | None = Field(default=None, description="TREAD or SPRINT; null is off.")
    masking: Masking | None = Field(default=None, description="Deferred masking; null is off.")
    contrast: NotNegative = Field(
        default=0.0,
        description="Weight of the distance to another sample's velocity, which is made larger "
        "(contrastive flow matching, arXiv 2506.05350): 0.05 in the paper, 0 is off. The other one "
        "is of the same pass of the same GPU, so results depend a little on how many there are.",
    )
    perceptual: tuple[Perceptual, ...] = Field(
        default=(), max_length=4, description="Perceptual losses; an empty list is off."
    )

    def in_stage(self, stage: Stage) -> Objective:
        """What is left of it in a stage, with the stage's own shift. A weight of 0 is off."""
        aligned = self.alignment
        if not stage.alignment or (aligned is not None and not aligned.weight):
            aligned = None
        return self.model_copy(
            update={
                "timestep_shift": stage.timestep_shift or self.timestep_shift,
                "alignment": aligned,
                "routing": self.routing if stage.routing else None,
                "masking": self.masking if stage.masking else None,
                "contrast": self.contrast if stage.contrast else 0.0,
                "perceptual": tuple(p for p in self.perceptual if stage.perceptual and p.weight),
            }
        )
