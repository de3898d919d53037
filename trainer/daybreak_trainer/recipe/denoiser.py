"""The denoiser's architecture and what it starts from, and the space in which it works."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from daybreak_trainer.recipe.base import (
    Positive,
    PositiveInt,
    RecipeModel,
    Source,
    heads_that_divide,
)

_ROTARY = 4
"""Two axes, each of pairs of numbers."""


class Denoiser(RecipeModel):
    """The denoiser's architecture: `PRXTransformer2DModel` or `SanaTransformer2DModel` of
    diffusers, in pixel space or, where `recipe.latent` is set, on an autoencoder's latents."""

    kind: Literal["prx", "sana"] = Field(
        description="Family of the denoiser: prx attends over image and text together; sana has "
        "linear attention over the image and crosses over to the text (arXiv 2410.10629)."
    )
    hidden_size: PositiveInt = Field(description="Width of the token stream.")
    depth: PositiveInt = Field(description="Number of transformer blocks.")
    heads: PositiveInt = Field(
        description="Attention heads; prx: hiddenSize / heads must be a multiple of 4."
    )
    patch_size: PositiveInt = Field(
        description="Side of a patch in pixels, or in places of the latent; with the latent's "
        "downsampling it must divide every resolution."
    )
    mlp_ratio: Positive = Field(description="Width of the gated MLP over hiddenSize.")
    bottleneck_size: PositiveInt | None = Field(
        default=None,
        description="prx: two-layer patch embedding through this width (JiT, arXiv 2511.13720); "
        "null for one layer.",
    )
    initialisation: Literal["standard", "depth-scaled", "mup"] = Field(
        default="standard",
        description="What weights start from: standard is diffusers' own; depth-scaled shrinks "
        "what block l adds to the stream by sqrt(2 (l + 1)) (MicroDiT, arXiv 2407.15811); mup "
        "draws with variance 1 / fan-in and divides each matrix's learning rate by hiddenSize "
        "over 256 (muon: by its root), so that a rate found on a small model holds for a large one "
        "(arXiv 2203.03466). All start with an output of zero (adaLN-zero, arXiv 2212.09748).",
    )
    zero_modulation: Literal["all", "gates"] = Field(
        default="all",
        description="What of the modulation starts at zero: all of it (adaLN-zero), or the gates "
        "alone, so that shift and scale see the timestep from the first step on (nano-t2i).",
    )
    shared_modulation: bool = Field(
        default=False,
        description="prx: one modulation for all blocks, and in each block a learned gain for "
        "every channel (PixArt-alpha, arXiv 2310.00426; nano-t2i): a quarter fewer parameters. The "
        "export spells it out, so stock diffusers loads it.",
    )
    rope_range: Literal["patches", "last-stage"] = Field(
        default="patches",
        description="prx: coordinates of the rotary embedding. patches counts them; last-stage "
        "stretches every stage's grid to that of the last one, so that a place in the image keeps "
        "its coordinates when the resolution rises (nano-t2i).",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        multiple = _ROTARY if self.kind == "prx" else 1
        if self.hidden_size % multiple:
            raise ValueError(
                f"hiddenSize ({self.hidden_size}) must be a multiple of {multiple} for the two "
                "rotary axes of its heads"
            )
        fit = heads_that_divide(self.hidden_size, self.heads, multiple)
        if self.hidden_size % self.heads:
            raise ValueError(
                f"heads ({self.heads}) must divide hiddenSize ({self.hidden_size}): take {fit}"
            )
        if (self.hidden_size // self.heads) % multiple:
            raise ValueError(
                f"hiddenSize / heads is {self.hidden_size // self.heads}; the two rotary axes need "
                f"a multiple of {multiple}: take {fit} heads"
            )
        return self

    @model_validator(mode="after")
    def _sana_has_no_such_thing(self) -> Self:
        if self.kind == "sana":
            for name, value, off in (
                ("bottleneckSize", self.bottleneck_size, None),
                ("sharedModulation", self.shared_modulation, False),
                ("ropeRange", self.rope_range, "patches"),
            ):
                if value != off:
                    raise ValueError(f"{name} is of kind: prx; sana has no such part, leave it out")
        return self


class Latent(RecipeModel):
    """The space of an autoencoder's latents, in which the denoiser works."""

    autoencoder: Source = Field(
        description="The autoencoder, a local folder or a Hugging Face repository of an "
        "AutoencoderDC or AutoencoderKL of diffusers."
    )
    channels: PositiveInt = Field(description="Channels of its latents, such as 32.")
    downsampling: PositiveInt = Field(description="Pixels a side of one place, such as 32.")
    precomputed: bool = Field(
        default=True,
        description="Read latents that `daybreak prepare --latents` wrote; false encodes images in "
        "every step.",
    )
