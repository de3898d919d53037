"""`spec` of a TrainingRun. The descriptions are the documentation: `kubectl explain trun.spec`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from daybreak_operator.api import recipe_rules
from daybreak_operator.api.base import ApiModel, cel
from daybreak_operator.api.policies import FailurePolicy, HealthPolicy
from daybreak_operator.api.prepare import Prepare
from daybreak_operator.api.types import (
    NO_CREDENTIALS,
    Duration,
    Interval,
    Money,
    PersistentVolumeClaim,
    PodTemplate,
    Resources,
    SecretRef,
    Url,
)
from daybreak_trainer.recipe import RecipeOverrides
from daybreak_trainer.recipe.base import Source

_IntOrAuto = Annotated[
    int | Literal["auto"],
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            **cel(
                (
                    "type(self) == int ? self >= 1 : self == 'auto'",
                    "processesPerNode must be auto or a number of at least 1",
                )
            ),
        }
    ),
]

_ONE_PLACE = "[has(self.{url}), has(self.persistentVolumeClaim)].filter(x, x).size() == 1"


class Stream(ApiModel):
    """A dataset of MDS shards."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                _ONE_PLACE.format(url="url"),
                "data.streams: set exactly one of url, persistentVolumeClaim",
            )
        )
    )

    url: Url | None = Field(
        default=None, description="Any fsspec URL of a folder that `daybreak prepare` wrote."
    )
    persistent_volume_claim: PersistentVolumeClaim | None = Field(
        default=None, description="The same folder on a volume, mounted read-only."
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Share of samples from this stream, relative to the others."
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become the fsspec options of url. Mounted as files.",
    )


class Cache(ApiModel):
    size_limit: str = Field(
        default="50Gi",
        pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)?$",
        description="Size limit of the worker's scratch volume, where shards are cached.",
    )


class Data(ApiModel):
    """What to train on."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.prepare) || self.prepare.stream < size(self.streams)",
                "data.prepare.stream is the number of one of data.streams, from 0",
            )
        )
    )

    streams: tuple[Stream, ...] = Field(
        min_length=1,
        max_length=16,
        description="The datasets to train on, mixed by their weights.",
    )
    cache: Cache = Field(default=Cache(), description="Where workers keep downloaded shards.")
    prepare: Prepare | None = Field(
        default=None,
        description="Prepare a stream's data first, in pods of its own. What is there already, "
        "whole and of the same inputs, is not made again.",
    )


class Workers(ApiModel):
    """The worker pods. Their count is what `kubectl scale` changes."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.minNodes) || self.minNodes <= self.nodes",
                "workers.nodes must not be below workers.minNodes",
            ),
            (
                "!has(self.maxNodes) || self.nodes <= self.maxNodes",
                "workers.nodes must not exceed workers.maxNodes",
            ),
            (
                "!has(self.minNodes) || !has(self.maxNodes) || self.minNodes <= self.maxNodes",
                "workers.minNodes must not exceed workers.maxNodes",
            ),
        )
    )

    image: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="Image with the Daybreak trainer; its version must be the operator's."
    )
    nodes: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1, description="Worker pods. Changing it checkpoints and goes on at the new size."
    )
    min_nodes: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="Fewest nodes the run may have. With it, a run whose nodes are lost for good "
        "goes on with those that are left, and grows back when there are more.",
    )
    max_nodes: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Most nodes the run may be scaled to."
    )
    processes_per_node: _IntOrAuto = Field(
        default="auto", description="Ranks in a pod; auto is one for each GPU, or one without."
    )
    resources: Resources = Field(
        default_factory=dict,
        description="Resources of the trainer container, as in a pod: GPUs under limits.",
    )
    template: PodTemplate = Field(
        default_factory=dict,
        description="Laid over the pod template: metadata labels and annotations, and spec fields "
        "such as nodeSelector, tolerations, affinity, volumes. A container named trainer is "
        "merged into ours, others are sidecars.",
    )


class Compute(ApiModel):
    """How the workers compute. Nothing here changes what is learned but for rounding; a change
    takes effect with the next attempt."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.activationCheckpointing != 'budget' || self.compile == 'blocks'",
                "compute.activationCheckpointing: budget needs compute.compile: blocks",
            )
        )
    )

    sharding: Literal["auto", "fsdp", "hsdp"] = Field(
        default="auto",
        description="fsdp shards the model over all ranks; hsdp within a node, replicated across "
        "nodes; auto is hsdp from two nodes of several ranks on.",
    )
    compile: Literal["none", "blocks"] = Field(
        default="none",
        description="blocks compiles each transformer block with torch.compile before the first "
        "step; what was compiled is kept beside the checkpoints.",
    )
    activation_checkpointing: Literal["none", "blocks", "budget"] = Field(
        default="none",
        description="Saves memory by computing activations again: none, those of every block, or "
        "what memoryBudget leaves (needs compile: blocks).",
    )
    memory_budget: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="activationCheckpointing: budget keeps this share of activations."
    )
    device_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Most images a device takes at once; a larger share of the global batch is "
        "accumulated over several passes. Left out: the whole share at once.",
    )


class Storage(ApiModel):
    """A place that outlives pods: a bucket, or a folder on a volume."""

    storage: Url | None = Field(
        default=None, description="Any fsspec URL, such as s3://bucket/x or gs://bucket/x."
    )
    persistent_volume_claim: PersistentVolumeClaim | None = Field(
        default=None, description="A folder on a volume that every node can mount."
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become the fsspec options of storage. Mounted as files.",
    )


class Checkpoint(Storage):
    """Where checkpoints are committed, and how often."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                _ONE_PLACE.format(url="storage"),
                "checkpoint: set exactly one of storage, persistentVolumeClaim",
            ),
            (
                "!has(self.resumeFrom) || self.resumeFrom.contains('://') || "
                "(has(self.persistentVolumeClaim) && (!self.resumeFrom.startsWith('/') || "
                "self.resumeFrom.startsWith('/mnt/daybreak/checkpoint/')))",
                "checkpoint.resumeFrom must be a URL, or in checkpoint.persistentVolumeClaim: a "
                "path from the volume's root, or as status.checkpoint.url has it",
            ),
        )
    )

    interval: Interval = Field(
        default="10m",
        description="A duration such as 10m, or 2000steps: how often to commit a checkpoint.",
    )
    keep_last: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=3, description="Committed checkpoints to keep; older ones are removed."
    )
    accept_changes: tuple[Literal["recipe", "data"], ...] = Field(
        default=(),
        max_length=2,
        description="A checkpoint made with another recipe or other data is refused, and the run "
        "fails saying what changed, unless that is listed here.",
    )
    resume_from: (
        Annotated[
            str, Field(max_length=2048, pattern=r"(^|/)run-[^/]+/attempt-[0-9]+/step-[0-9]+/?$")
        ]
        | None
    ) = Field(
        default=None,
        description="Begin from this commit of another run: its URL as in that run's "
        "status.checkpoint.url, read with secretRef, or a path in persistentVolumeClaim from the "
        "volume's root. Steps and samples go on, budget and ledger begin anew; the commit is not "
        "changed. Of no effect once the run has a commit of its own.",
        json_schema_extra=cel(
            ("!self.contains('..')", "checkpoint.resumeFrom must be a path without '..'"),
            NO_CREDENTIALS,
        ),
    )


class Extractors(ApiModel):
    """Vision models whose features drawn images are compared by. Scores are named by them."""

    inception: Source | None = Field(
        default=None,
        description="For FID: torchvision's Inception v3 as a file of weights, or any image model "
        "as a local folder or a Hugging Face repository.",
    )
    clip: Source | None = Field(
        default=None,
        description="For CMMD and CLIP score: a CLIP model as a local folder or a Hugging Face "
        "repository, such as openai/clip-vit-large-patch14-336.",
    )
    dino: Source | None = Field(
        default=None,
        description="For Frechet distance and MMD by DINOv2: a local folder or a Hugging Face "
        "repository, such as facebook/dinov2-base.",
    )


class EvaluationSpec(ApiModel):
    """What to draw and judge, during training and when it is done."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.prompts) || self.prompts.map(p, size(p)).sum() <= 16384",
                "evaluation.prompts: at most 16384 characters in all",
            )
        )
    )

    interval: Interval = Field(
        default="15m",
        description="A duration such as 15m, or 2000steps: how often to judge the averaged weights "
        "while training; 0s is at the end only. A duration is stretched where judging would take "
        "more than a twentieth of the time.",
    )
    validation_samples: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=256,
        description="Samples to hold out of training, at most a tenth of the data: the validation "
        "loss is theirs, and drawn images are compared with them. 0 holds out none.",
    )
    extractors: Extractors = Field(
        default=Extractors(), description="With these, images are drawn for validation captions."
    )

    benchmark: Literal["shapes", "digits"] | None = Field(
        default=None,
        description="Score the finished model on this benchmark's held-out prompts; the score "
        "lands in status.evaluation.",
    )
    prompts: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] = Field(
        default=(),
        max_length=256,
        description="Prompts to draw for samples.png, 16384 characters in all.",
    )
    images: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=16, description="Images to draw for prompts, which are taken in turn."
    )


class Export(Storage):
    """Where the finished model goes, and as what."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                _ONE_PLACE.format(url="storage"),
                "export: set exactly one of storage, persistentVolumeClaim",
            )
        )
    )

    format: Literal["diffusers"] = Field(
        default="diffusers",
        description="A folder that stock diffusers loads: a PRXPixelPipeline, PRXPipeline or "
        "SanaPipeline, as the recipe has it.",
    )
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Of the weights in it; it is judged with them."
    )


class Budget(ApiModel):
    """What the whole run may use: training, the last checkpoint, export and evaluation end inside
    it. Stages with shares are planned to fit. With steps that do not, the run stops at the limit
    and fails with LimitReached; what was trained is committed and exported."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.maxCost) || has(self.gpuHourPrice)",
                "budget.maxCost needs budget.gpuHourPrice: the price of one GPU for an hour",
            ),
            (
                "!has(self.duration) || duration(self.duration) > duration('0s')",
                "budget.duration must be longer than 0s",
            ),
            (
                "!has(self.gpuHourPrice) || double(self.gpuHourPrice) > 0.0",
                "budget.gpuHourPrice must be more than 0; leave it out where GPUs cost nothing",
            ),
            (
                "!has(self.maxCost) || double(self.maxCost) > 0.0",
                "budget.maxCost must be more than 0",
            ),
        )
    )

    duration: Duration | None = Field(
        default=None,
        description="A duration such as 24h: time holding GPUs, over all attempts; queueing, "
        "suspension and data.prepare do not count.",
    )
    gpu_hour_price: Money | None = Field(
        default=None, description='Of one GPU for an hour, such as "2.00".'
    )
    max_cost: Money | None = Field(
        default=None,
        description='Most money for GPUs of workers, such as "1500"; those of data.prepare are not '
        "in it. Of it and duration the tighter wins.",
    )


_LIMITED = (
    "(has({0}.deadline) || "
    "(has({0}.budget) && (has({0}.budget.duration) || has({0}.budget.maxCost))))"
)


_UNCHANGED = "has(self.{0}) == has(oldSelf.{0}) && (!has(self.{0}) || self.{0} == oldSelf.{0})"


class TrainingRunSpec(ApiModel):
    """What to train, on what, and what it may use."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                f"!{_LIMITED.format('oldSelf')} || {_LIMITED.format('self')}",
                "budget and deadline: a run that has a limit keeps one, for its recipe may have "
                "shares of it; raise it instead",
            ),
            (
                _UNCHANGED.format("managedBy"),
                "managedBy is immutable: create a new run to hand it to another controller",
            ),
            (
                _UNCHANGED.format("data.prepare"),
                "data.prepare is immutable: the data is prepared once, when the run begins",
            ),
            (
                _UNCHANGED.format("checkpoint.storage")
                + " && "
                + _UNCHANGED.format("checkpoint.persistentVolumeClaim"),
                "checkpoint: where the checkpoints are is immutable, for a run goes on from them; "
                "create a new run with checkpoint.resumeFrom to move",
            ),
            recipe_rules.shares_need_a_limit(_LIMITED.format("self")),
        )
    )

    suspend: bool = Field(
        default=False,
        description="true checkpoints and releases the workers; false goes on from there.",
    )
    budget: Budget = Field(
        default=Budget(),
        description="What the whole run may use. Stages with shares are planned to fit; with steps "
        "that do not, the run stops there, commits, exports and fails with LimitReached.",
    )
    deadline: str | None = Field(
        default=None,
        max_length=64,
        # Not format date-time: what that says of a missing zone names no zone, or it takes it.
        json_schema_extra=cel(
            (
                "self.matches('^[^ ]+[Tt][^ ]+([Zz]|[+-][0-9]{2}:[0-9]{2})$') && "
                "timestamp(self.upperAscii()) > timestamp('1970-01-01T00:00:00Z')",
                "deadline needs a date, a time and a time zone, such as 2026-12-01T08:00:00Z",
            )
        ),
        description="When the run must be over, export included: RFC 3339, such as "
        '"2026-12-01T08:00:00Z". A limit as budget is.',
    )
    active_deadline: Duration | None = Field(
        default=None,
        description="A duration such as 36h: longest time that the run may be active, from "
        "admission on, over all attempts and the pauses between them. Queueing, suspension and "
        "data.prepare do not count. Then its workers commit and it fails with DeadlineExceeded.",
    )
    managed_by: (
        Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[\w.-]+$")]
        | None
    ) = Field(
        default=None,
        description="Another controller's name, such as kueue.x-k8s.io/multikueue: this operator "
        "then leaves the run alone. Left out, or daybreak.dev/operator: the run is ours.",
    )
    workers: Workers
    data: Data
    recipe: RecipeOverrides = Field(  # type: ignore[valid-type]
        description="How to train: a preset, and what to change of it. Fixed once the run exists.",
        json_schema_extra=cel(
            ("self == oldSelf", "recipe is immutable: create a new run to train another way"),
            *recipe_rules.RECIPE,
        ),
    )
    checkpoint: Checkpoint
    evaluation: EvaluationSpec = Field(default=EvaluationSpec())
    export: Export | None = Field(
        default=None, description="Where the finished model goes; nowhere if left out."
    )
    compute: Compute = Field(
        default=Compute(), description="How the workers compute; not what they learn."
    )
    failure_policy: FailurePolicy = Field(
        default=FailurePolicy(), description="What a failed attempt means for the run."
    )
    health_policy: HealthPolicy = Field(
        default=HealthPolicy(),
        description="How long workers may take to start and to move on, and when a node is "
        "avoided.",
    )
    scale_cooldown: Duration = Field(
        default="10m",
        description="A duration such as 10m: shortest time between two changes of size; a change "
        "that comes sooner waits.",
    )
    termination_grace_period: Duration = Field(
        default="120s",
        description="A duration such as 120s: time between SIGTERM and SIGKILL, enough to commit a "
        "checkpoint.",
    )
    clean_pod_policy: Literal["Running", "All", "None"] = Field(
        default="Running",
        description="What of the workers goes when the run is over: Running ends those that still "
        "run and keeps the others and their logs, All deletes all Jobs, None deletes nothing.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2_000_000_000)] | None = Field(
        default=None,
        description="Seconds after its end when the run is deleted with its Jobs and pods. "
        "Checkpoints and exports stay. Left out: never.",
    )
