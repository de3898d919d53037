"""What the operator and the trainer agree on.

Both sides import this module and the recipe, and nothing else of each other: exit codes, ports,
environment names, paths inside a worker pod, and the two JSON messages a worker sends (its progress
and its termination message). It needs pydantic and the standard library only, so the operator's
image has no torch, and a scripted worker in a test can honour it in a few lines.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from pydantic.alias_generators import to_camel

LABEL_RUN = "daybreak.dev/run"
LABEL_ATTEMPT = "daybreak.dev/attempt"
LABEL_ROLE = "daybreak.dev/role"
"""On what is of a run and of no attempt; `ROLE_PREPARE`."""
ROLE_PREPARE = "prepare"


class ExitCode(IntEnum):
    """How a worker pod ends. Exit 0 is given only after the final checkpoint is committed: in an
    Indexed Job it marks the index complete for ever."""

    DONE = 0
    FAILED = 1
    BAD_RECIPE = 64
    BAD_DATA = 65
    CHECKPOINTED = 75
    HUNG = 76
    NON_FINITE = 77
    DO_NOT_RESTART = 93
    ABORTED = 134
    KILLED = 137
    SEGFAULT = 139
    TERMINATED = 143


FINAL_EXIT_CODES = frozenset(
    {ExitCode.BAD_RECIPE, ExitCode.BAD_DATA, ExitCode.NON_FINITE, ExitCode.DO_NOT_RESTART}
)
"""A new attempt would end the same way: the run fails at once."""

UNCHARGED_EXIT_CODES = frozenset({ExitCode.CHECKPOINTED, ExitCode.TERMINATED})
"""Somebody asked the worker to stop: the restart budget is not charged."""

# --- Ports -----------------------------------------------------------------------------------

HTTP_PORT = 9400
"""`/metrics`, `/progress` and `/healthz` of a worker, on the pod's own IP."""

RENDEZVOUS_PORTS = range(20000, 32001)


def rendezvous_port(namespace: str, run: str, attempt: int) -> int:
    """The TCPStore's port of one attempt.

    Pods may share the host's network (RDMA clusters, the devcluster) and TCPStore listens on every
    address, so two runs on one host must not meet: the port is derived from what tells them apart.
    """
    digest = hashlib.sha256(f"{namespace}/{run}/{attempt}".encode()).digest()
    return RENDEZVOUS_PORTS[int.from_bytes(digest[:8], "big") % len(RENDEZVOUS_PORTS)]


# --- Paths inside a worker pod ----------------------------------------------------------------

WORK_DIR = Path("/var/lib/daybreak")
"""The one writable volume: home, temporary files and caches live under it (see `worker_dirs`)."""
RECIPE_PATH = Path("/etc/daybreak/run/recipe.json")
SECRETS_DIR = Path("/etc/daybreak/secrets")
"""One folder a role, mounted from that role's Secret: `<SECRETS_DIR>/<role>/<key>`."""
VOLUMES_DIR = Path("/mnt/daybreak")
"""PersistentVolumeClaims are mounted at `<VOLUMES_DIR>/<role>`."""
TERMINATION_LOG = Path("/dev/termination-log")

Role = str
"""`checkpoint`, `export`, `data-<i>` for the i-th stream, or `source` of what is prepared."""
SOURCE_ROLE: Role = "source"

RANKS_FOLDER = "ranks"
"""Under the work folder: how each rank ended, `<rank>.json`, a `Termination`."""


def worker_dirs(work_dir: Path) -> dict[str, str]:
    """Environment that keeps every library's writes on the writable volume (root is read-only)."""
    return {
        "HOME": f"{work_dir}/home",
        "TMPDIR": f"{work_dir}/tmp",
        "XDG_CACHE_HOME": f"{work_dir}/cache",
        "HF_HOME": f"{work_dir}/cache/huggingface",
        "TORCHINDUCTOR_CACHE_DIR": f"{work_dir}/cache/inductor",
        "TRITON_CACHE_DIR": f"{work_dir}/cache/triton",
        "PROMETHEUS_MULTIPROC_DIR": f"{work_dir}/metrics",
    }


# --- Environment of a worker pod ----------------------------------------------------------------

ENV_RUN = "DAYBREAK_RUN"
"""`RunSettings` as JSON."""
ENV_PREPARE = "DAYBREAK_PREPARE"
"""`PrepareSettings` as JSON, in a pod that prepares data."""
ENV_NODE_INDEX = "DAYBREAK_NODE_INDEX"
"""The pod's completion index, 0 ... nodes-1 (fieldRef)."""
ENV_POD_NAME = "DAYBREAK_POD_NAME"
ENV_POD_IP = "DAYBREAK_POD_IP"
ENV_WORK_DIR = "DAYBREAK_WORK_DIR"
"""Replaces `WORK_DIR` where a worker runs outside a pod (tests, `make bench`)."""
ENV_RECIPE_PATH = "DAYBREAK_RECIPE_PATH"
ENV_TERMINATION_LOG = "DAYBREAK_TERMINATION_LOG"
ENV_SECRETS_DIR = "DAYBREAK_SECRETS_DIR"


def rfc3339(moment: datetime, timespec: str = "milliseconds") -> str:
    """A time as messages and status write it; `moment` is in UTC."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def _is_time(text: str) -> str:
    """Raises ValueError: the API server would refuse it in a status."""
    datetime.fromisoformat(text)  # the 31st of February is none
    return text


Timestamp = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"),
    AfterValidator(_is_time),
]
"""RFC 3339, with an offset."""


class Message(BaseModel):
    """A frozen JSON object with camelCase keys; unknown keys are refused, but for what a worker
    says (`WorkerMessage`)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)


class StreamSettings(Message):
    url: str = Field(description="Any fsspec URL or local path of a folder with an MDS index.json.")
    weight: float = 1.0
    role: Role = Field(description="Names the folder of this stream's secret, `data-<i>`.")


class ExtractorSettings(Message):
    """Vision models whose features images are compared by; each a local folder or a Hugging Face
    repository, `inception` also a file of weights."""

    inception: str | None = None
    clip: str | None = None
    dino: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Those that are set, by name."""
        return {name: path for name, path in self if path is not None}


class EvaluationSettings(Message):
    prompts: tuple[str, ...] = ()
    images: int = 16
    benchmark: Literal["shapes", "digits"] | None = Field(
        default=None, description="Score the model on this benchmark's held-out prompts."
    )
    interval_seconds: float | None = None
    interval_steps: int | None = Field(
        default=None, description="With neither interval a run is judged at its end only."
    )
    validation_samples: int = Field(
        default=0, ge=0, description="Held out of training for the validation loss; 0 is off."
    )
    extractors: ExtractorSettings = ExtractorSettings()


class ComputeSettings(Message):
    """How the ranks compute. None of it changes what is learned but for rounding, so it is no part
    of the recipe, and an attempt may differ from the one before it."""

    sharding: Literal["auto", "fsdp", "hsdp"] = Field(
        default="auto",
        description="fsdp: over all ranks; hsdp: within a node, replicated across nodes; auto: "
        "hsdp from two nodes of several ranks on.",
    )
    compile: Literal["none", "blocks"] = Field(
        default="none", description="torch.compile of each transformer block."
    )
    activation_checkpointing: Literal["none", "blocks", "budget"] = Field(
        default="none", description="What the backward pass computes again to save memory."
    )
    memory_budget: float = Field(
        default=0.5, gt=0, le=1, description="budget: share of the activations that is kept."
    )
    device_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Most images a device takes at once; a larger share of the global batch is "
        "accumulated over several passes. None: the whole share at once.",
    )


class HealthSettings(Message):
    """When an attempt is no longer worth waiting for."""

    startup_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="Longest time without a sign of progress before the first step.",
    )
    progress_seconds: float = Field(
        default=900.0, gt=0, description="Between two signs of progress after that."
    )
    rank_restarts: int = Field(
        default=3,
        ge=0,
        description="Times that ranks which crashed are started again in their pods, without a new "
        "commit in between, before the attempt fails.",
    )
    non_finite_steps: int = Field(
        default=10,
        ge=1,
        description="Steps in a row without a finite gradient before the run rolls back.",
    )


class BudgetSettings(Message):
    """What the whole run may use; the tighter of time and money wins."""

    duration_seconds: float | None = Field(
        default=None, gt=0, description="Time holding devices, over all attempts."
    )
    gpu_hour_price: float | None = Field(default=None, gt=0, description="Of one device.")
    max_cost: float | None = Field(default=None, gt=0, description="In gpuHourPrice's money.")


class RunSettings(Message):
    """Everything one attempt needs to know that is not the recipe. Goes into the Job's pod template
    as one environment variable, so an attempt's settings are fixed when its Job is created."""

    name: str
    namespace: str
    uid: str = Field(description="The TrainingRun's UID: a checkpoint of another UID is foreign.")
    attempt: int = Field(ge=1)
    nodes: int = Field(ge=1)
    processes_per_node: int | Literal["auto"] = "auto"
    master_address: str = Field(description="Host name of worker 0.")
    master_port: int
    recipe_hash: str
    streams: tuple[StreamSettings, ...] = Field(min_length=1)
    checkpoint_url: str
    checkpoint_interval_seconds: float | None = None
    checkpoint_interval_steps: int | None = None
    checkpoint_keep_last: int = 3
    accept_changes: tuple[Literal["recipe", "data"], ...] = Field(
        default=(),
        description="What may differ from the checkpoint that is resumed; anything else refuses.",
    )
    resume_from: str | None = Field(
        default=None,
        description="URL of another run's commit, its step's folder: where the run begins while it "
        "has no commit of its own. Read with the options of `checkpoint`, never written to.",
    )
    cache_bytes: int | None = Field(
        default=None, ge=1, description="Most bytes of shards to keep on this node; None: no limit."
    )
    compute: ComputeSettings = ComputeSettings()
    health: HealthSettings = HealthSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    export_url: str | None = None
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    budget: BudgetSettings = BudgetSettings()
    held_seconds: float = Field(
        default=0.0,
        ge=0,
        description="That the run held devices before this attempt, as the operator counted them; "
        "where checkpoints know of less, because attempts ended without one, this counts.",
    )
    deadline: str | None = Field(
        default=None, description="RFC 3339: when the run, export included, must be over."
    )
    grace_seconds: float = Field(
        default=120.0, description="The pod's termination grace period: SIGTERM to SIGKILL."
    )


class EmbeddingSettings(Message):
    """Captions' embeddings, made once before training."""

    encoder: str
    max_tokens: int = Field(default=256, ge=1)
    precision: Literal["bf16", "8bit"] = "bf16"
    captions: tuple[str, ...] = ("caption",)
    lower_case: bool = False


class PrepareSettings(Message):
    """Everything the pods that prepare a stream's data need to know. What decides which bytes they
    write is all but `nodes` and `out`."""

    name: str
    namespace: str
    nodes: int = Field(ge=1, description="Pods that share the work.")
    source: str = Field(
        description="digits, shapes, a folder of images, or a dataset that gets more columns: its "
        "folder or URL."
    )
    out: StreamSettings = Field(description="The stream that reads what is made.")
    resolution: int | None = Field(default=None, ge=1)
    count: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    buckets: bool = False
    multiple: int | None = Field(default=None, ge=1)
    encoding: Literal["png", "jpeg"] | None = None
    jpeg_quality: int = Field(default=92, ge=1, le=100)
    shard_bytes: int = Field(default=1 << 22, ge=1)
    skip_unreadable: bool = False
    latents: str | None = Field(default=None, description="Autoencoder.")
    embeddings: EmbeddingSettings | None = None
    drop_images: bool = False


# --- What a worker says ---------------------------------------------------------------------------


class WorkerMessage(Message):
    """Unknown keys are passed over, here alone: so an operator can read what a newer trainer says.
    A worker has to understand all of its settings.

    What is in it reaches the run's status, and the API server refuses a status with a time that is
    none or a number that no 64 bits hold. So a message with one is no message.
    """

    model_config = ConfigDict(extra="ignore")


Count = Annotated[int, Field(ge=0, le=2**53)]
Label = Annotated[str, Field(max_length=253)]
Place = Annotated[str, Field(max_length=4096)]
_MOST_FIGURES = 64
Figures = Annotated[dict[Label, float], Field(max_length=_MOST_FIGURES)]
"""By cause, or by what an image shows."""


WorkerPhase = Literal[
    "Starting", "Training", "Checkpointing", "Evaluating", "Exporting", "Done", "Stopping"
]


class StageProgress(WorkerMessage):
    name: Label
    index: Count = Field(ge=1, description="1-based.")
    of: Count = Field(ge=1)


class CheckpointRef(WorkerMessage):
    """The newest committed checkpoint of this run's lineage."""

    step: Count
    time: Timestamp = Field(description="RFC 3339, UTC.")
    url: Place


class Evaluation(WorkerMessage):
    """Scores of samples drawn for held-out prompts; ratios in 0..1."""

    benchmark: Label
    step: Count
    alignment: float
    alignment_by_tag: Figures
    judge_accuracy: Figures = Field(
        default_factory=dict, description="The judge's own accuracy on real images, by tag."
    )
    images: Count


class MetricScore(WorkerMessage):
    """One figure about drawn images, named by what saw them."""

    name: str = Field(
        description="fid, kid and cmmd with the standard extractor alone; with another, "
        "frechet_distance, kernel_distance and mmd. Or clip_score."
    )
    value: float
    extractor: str
    standard: bool = Field(description="Whether the extractor is the metric's own.")
    images: int
    reference_images: int


class Validation(WorkerMessage):
    """What the averaged weights come to on samples that training never saw."""

    step: int
    samples: int = 0
    loss: float | None = Field(
        default=None, description="Mean over timesteps and samples; None: no samples."
    )
    bins: dict[str, float] = Field(
        default_factory=dict, description="The same by range of timesteps, such as 0.0-0.3."
    )
    alignment: float | None = None
    alignment_by_tag: dict[str, float] = Field(default_factory=dict)
    metrics: tuple[MetricScore, ...] = ()
    seconds: float = Field(default=0.0, description="Time that all of it took.")


class EarlyEnd(WorkerMessage):
    """Budget or deadline ends the run before its last step."""

    step: int = Field(description="About where.")
    limit: str = Field(description="The field that says so.")
    remedy: str = Field(description="What helps.")


class SlowRank(WorkerMessage):
    """A rank that holds up all others, and did so in the last hundred steps."""

    rank: int
    worker: int = Field(description="Index of its pod.")
    pod: str | None = Field(default=None, description="Name of its pod, where that is known.")
    ratio: float = Field(
        description="Median time of its own work for an image over that of the fast ranks."
    )


class Progress(WorkerMessage):
    """`GET /progress` on worker 0. Times are RFC 3339, UTC; a missing value is not known yet."""

    run_uid: str
    attempt: Count
    phase: WorkerPhase
    message: str = Field(default="", max_length=1024)
    stage: StageProgress | None = None
    step: Count = 0
    total_steps: Count | None = None
    ends_early: EarlyEnd | None = None
    samples: Count = 0
    images_per_second: float | None = None
    loss: float | None = None
    started_at: Timestamp
    first_step_at: Timestamp | None = Field(
        default=None, description="When this attempt finished its first optimizer step."
    )
    resumed_from: CheckpointRef | None = None
    checkpoint: CheckpointRef | None = None
    skipped_checkpoints: tuple[str, ...] = Field(
        default=(), description="One sentence for each checkpoint that was passed over at resume."
    )
    estimated_completion_time: Timestamp | None = None
    training_seconds: float = Field(
        default=0.0, description="Time in training steps over the whole run, restored on resume."
    )
    mfu: float | None = Field(
        default=None, description="Model FLOPs over the devices' peak, 0..1; None: peak not known."
    )
    ledger: Annotated[dict[Label, FiniteFloat], Field(max_length=_MOST_FIGURES)] = Field(
        default_factory=dict,
        description="Seconds that the run held its devices: `productive`, and lost ones by cause.",
    )
    restarts: dict[Label, Count] = Field(
        default_factory=dict, description="Restarts inside pods over the whole run, by cause."
    )
    straggler: SlowRank | None = Field(
        default=None, description="The slowest rank, while one is persistently slow."
    )
    evaluation: Evaluation | None = None
    validation: Validation | None = Field(
        default=None, description="The newest evaluation during training."
    )
    export_url: Place | None = None
    updated_at: Timestamp


MAX_TERMINATION_BYTES = 4096
"""Kubernetes cuts a termination message here; a cut JSON object is no JSON object."""


class Termination(WorkerMessage):
    """The termination message of a worker pod: why it ended, for a person first."""

    reason: str = Field(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$", description="CamelCase, stable.")
    message: str = Field(description="One readable sentence: what, where, what to do.")
    exit_code: int
    step: Count = 0
    samples: Count = 0
    rank: Count | None = Field(default=None, description="The first rank that failed.")
    traceback: str = Field(default="", description="Last lines of that rank's traceback.")
    checkpoint: CheckpointRef | None = None
    skipped_checkpoints: tuple[str, ...] = ()
    progress: Progress | None = Field(
        default=None,
        description="Worker 0's last progress, so a poll that came too late loses nothing.",
    )

    def encode(self) -> bytes:
        """JSON of at most `MAX_TERMINATION_BYTES`: texts are cut, longest first, never the JSON."""
        candidate = self
        while True:
            raw = candidate.to_json().encode()
            excess = len(raw) - MAX_TERMINATION_BYTES
            if excess <= 0:
                return raw
            candidate = _shortened(candidate, excess)

    @classmethod
    def decode(cls, raw: str | None) -> Termination | None:
        """The message, or None where a container wrote none or something else."""
        if not raw:
            return None
        try:
            return cls.model_validate_json(raw)
        except ValidationError:
            return None


def _shortened(message: Termination, excess: int) -> Termination:
    """Give up what helps least first: the head of the traceback, old checkpoints, then progress."""
    if message.traceback:
        return message.model_copy(update={"traceback": message.traceback[excess + 8 :]})
    if message.skipped_checkpoints:
        return message.model_copy(update={"skipped_checkpoints": ()})
    if message.progress is not None and message.progress.skipped_checkpoints:
        progress = message.progress.model_copy(update={"skipped_checkpoints": ()})
        return message.model_copy(update={"progress": progress})
    if message.progress is not None and message.progress.validation is not None:
        progress = message.progress.model_copy(update={"validation": None})
        return message.model_copy(update={"progress": progress})
    if len(message.message) > 512:
        return message.model_copy(
            update={"message": message.message[: max(512, len(message.message) - excess - 8)] + "…"}
        )
    if message.progress is not None:
        return message.model_copy(update={"progress": None})
    return message.model_copy(update={"message": message.message[:256], "checkpoint": None})
