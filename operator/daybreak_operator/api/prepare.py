"""`spec.data.prepare`: how the data of a stream is made, before training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from daybreak_operator.api.base import ApiModel, cel
from daybreak_operator.api.types import (
    NO_CREDENTIALS,
    PersistentVolumeClaim,
    PodTemplate,
    Resources,
    SecretRef,
)
from daybreak_trainer.recipe.base import Source

_Caption = Annotated[str, Field(pattern=r"^caption(_[a-z0-9_]{1,50})?$")]


class Embeddings(ApiModel):
    """Captions through a frozen text encoder, once and for all (recipe.text.precomputed)."""

    encoder: Source = Field(description="A local folder or a Hugging Face repository.")
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=256, description="Captions are cut to it, as recipe.text.maxTokens has it."
    )
    precision: Literal["bf16", "8bit"] = Field(default="bf16", description="How they are stored.")
    captions: tuple[_Caption, ...] = Field(
        default=("caption",), min_length=1, max_length=16, description="Columns of captions."
    )
    lower_case: bool = Field(
        default=False,
        description="Put captions into lower case, which recipe.denoiser.kind sana needs.",
    )


class Prepare(ApiModel):
    """Where the data comes from and what is made of it, as by `daybreak prepare`. The data is
    prepared once, when the run begins: nothing here may change afterwards."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.source), has(self.persistentVolumeClaim)].filter(x, x).size() == 1",
                "data.prepare: set exactly one of source, persistentVolumeClaim",
            ),
            (
                "!self.dropImages || has(self.latents)",
                "data.prepare.dropImages leaves nothing to train on without latents",
            ),
            (
                "!has(self.multiple) || self.buckets",
                "data.prepare.multiple is about the sides of buckets: set buckets",
            ),
            (
                "!self.buckets || !has(self.source)",
                "data.prepare.buckets is for a folder of images",
            ),
            (
                "!has(self.source) || self.source in ['digits', 'shapes'] || "
                "has(self.latents) || has(self.embeddings)",
                "data.prepare.source is a dataset: say what to add, latents or embeddings",
            ),
            (
                "!has(self.source) || self.source in ['digits', 'shapes'] || !has(self.resolution)",
                "data.prepare.source is a dataset, whose images have their size: leave out "
                "resolution",
            ),
            (
                "has(self.source) || has(self.resolution) || has(self.latents) || "
                "has(self.embeddings)",
                "data.prepare.resolution: a folder of images needs the side of the images, and a "
                "dataset latents or embeddings to add",
            ),
        )
    )

    source: (
        Annotated[str, Field(max_length=2048, pattern=r"^(digits|shapes|[^:]+://.+)$")] | None
    ) = Field(
        default=None,
        description="digits or shapes, which are drawn, or the URL of a dataset that gets more "
        "columns.",
        json_schema_extra=cel(NO_CREDENTIALS),
    )
    persistent_volume_claim: PersistentVolumeClaim | None = Field(
        default=None,
        description="A folder of images with captions, or a dataset that gets more columns; "
        "mounted read-only.",
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become the fsspec options of source. Mounted as files.",
    )
    stream: Annotated[int, Field(ge=0, le=15)] = Field(
        default=0,
        description="The stream, from 0, that reads what is made: it goes to its url, written with "
        "its secretRef, or to its volume.",
    )
    nodes: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1,
        description="Pods that share the work. What they make does not depend on how many.",
    )
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        default=None, description="Image with the Daybreak trainer; left out: workers.image."
    )
    resources: Resources = Field(
        default_factory=dict,
        description="Resources of a pod's container: with a GPU under limits, latents and "
        "embeddings are made on it. Neither budget nor activeDeadline bounds what they cost, and "
        "the ledger does not count it; spec.deadline ends it.",
    )
    template: PodTemplate = Field(
        default_factory=dict,
        description="Laid over the pod template as workers.template is; the container is named "
        "prepare.",
    )
    scratch: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)?$")] = Field(
        default="50Gi",
        description="Size limit of a pod's scratch volume: room for a part of the data (16,384 "
        "samples at most, or 16 shards) and for models.",
    )
    resolution: Annotated[int, Field(ge=1, le=16384)] | None = Field(
        default=None, description="Side of the images, pixels; a folder of images needs it."
    )
    count: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="At most so many samples."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of shapes.")
    buckets: bool = Field(default=False, description="Keep images' aspect ratios, at most 2:1.")
    multiple: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="Sides of buckets are multiples of so many pixels; left out: 8. The model's "
        "patch size must divide them.",
    )
    encoding: Literal["png", "jpeg"] | None = Field(
        default=None,
        description="How images are stored; left out: jpeg for a folder, png for what is drawn.",
    )
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = Field(
        default=92, description="Of encoding: jpeg."
    )
    shard_size: Annotated[str, Field(pattern=r"^[0-9]+(Ki|Mi|Gi)?$", max_length=16)] = Field(
        default="4Mi", description="Most bytes of a shard; 128Mi for millions of images."
    )
    skip_unreadable: bool = Field(
        default=False,
        description="Leave out images that cannot be decoded, and list them in skipped.json.",
    )
    latents: Source | None = Field(
        default=None,
        description="Add latents, made by this AutoencoderDC or AutoencoderKL of diffusers, a "
        "local folder or a Hugging Face repository.",
    )
    embeddings: Embeddings | None = Field(default=None, description="Add captions' embeddings.")
    drop_images: bool = Field(default=False, description="With latents: leave the images out.")
