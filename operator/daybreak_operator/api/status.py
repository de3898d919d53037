"""`status` of a TrainingRun: what the operator knows, for people first."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from daybreak_operator.api.base import ApiModel
from daybreak_operator.api.policies import FailureClass

Phase = Literal[
    "Pending",
    "Preparing",
    "Queued",
    "Starting",
    "Running",
    "Restarting",
    "Suspended",
    "Complete",
    "Failed",
]
TERMINAL: frozenset[Phase] = frozenset({"Complete", "Failed"})
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Condition(ApiModel):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32768)]
    last_transition_time: Time
    observed_generation: int = 0


class StageStatus(ApiModel):
    name: str
    index: int = Field(description="From 1.")
    of: int


class ProgressStatus(ApiModel):
    step: int = 0
    total_steps: int | None = None
    samples: int = Field(default=0, description="Samples trained on.")
    percent: int = 0
    images_per_second: str | None = None
    loss: str | None = None
    estimated_completion_time: Time | None = None
    training_seconds: str | None = Field(
        default=None, description="Time in training steps over all attempts."
    )
    first_step_time: Time | None = Field(
        default=None, description="When the run finished its first optimizer step."
    )
    advanced_time: Time | None = Field(
        default=None, description="When the operator last saw a sign of progress."
    )
    told_time: Time | None = Field(
        default=None, description="The worker's own time of what it last said."
    )


class AttemptStatus(ApiModel):
    """The current attempt's times; they survive its Job."""

    number: int
    nodes: int = Field(description="Worker pods it was made with.")
    devices_per_node: int = Field(default=1, description="GPUs of a worker, or its ranks.")
    created_time: Time = Field(description="When its Job was wanted.")
    admitted_time: Time | None = Field(
        default=None, description="When every pod had a node: start-up counts from here."
    )
    first_step_time: Time | None = None
    ended_time: Time | None = Field(default=None, description="When its end was seen.")
    released_time: Time | None = Field(
        default=None, description="When its last pod was gone, and its devices free."
    )
    start_step: int = Field(default=0, description="Of the commit that it began from.")


class LedgerStatus(ApiModel):
    """What the run's time went into: all of it, in seconds, up to accountedUntil.

    wall = productive + lost, in full. `queue`, `suspended` and `preparation` hold no devices;
    the rest of what is lost counts against goodput.
    """

    goodput: str = Field(
        default="0",
        description="Productive seconds over those since admission that were neither queued nor "
        "suspended.",
    )
    gpu_hours: str = Field(default="0", description="GPUs (without any: ranks) times hours held.")
    cost: str | None = Field(default=None, description="gpuHours times budget.gpuHourPrice.")
    productive_seconds: int = Field(
        default=0, description="In training steps that are part of the model."
    )
    lost_seconds: dict[str, int] = Field(
        default_factory=dict,
        description="By cause: queue, suspended, preparation, restart (between attempts), startup "
        "(admission to first step), stopping (from an attempt's end until its pods are gone), "
        "those that the trainer names (checkpoint, data_wait, "
        "evaluation, export, ...) and wasted (steps that were rolled back, and all else).",
    )
    held_seconds: int = Field(default=0, description="In which the run held devices.")
    device_seconds: int = Field(default=0, description="The same, times how many it held.")
    accounted_until: Time | None = None


class SuspectNode(ApiModel):
    """A node on which this run's workers failed."""

    name: str
    times: tuple[Time, ...] = Field(default=(), description="Failures within nodeWindow.")
    reason: str


class ScalingStatus(ApiModel):
    """The size in effect and why; spec.workers.nodes is what the user wants."""

    nodes: int = Field(description="Worker pods of the current or next attempt.")
    reason: str = Field(description="Requested, NodesLost or GrownBack.")
    time: Time = Field(description="When the size last changed.")


class PreparationStatus(ApiModel):
    """`data.prepare`."""

    state: Literal["Running", "Done", "Failed"]
    message: str = ""


class CheckpointStatus(ApiModel):
    step: int
    time: Time
    url: str


class WorkersStatus(ApiModel):
    desired: int = Field(description="Worker pods of the attempt at work; 0 between attempts.")
    ready: int = 0
    summary: str | None = Field(default=None, description="ready/desired.")
    selector: str = Field(description="Label selector of the worker pods.")


class EvaluationStatus(ApiModel):
    benchmark: str
    alignment: str = Field(description="Mean over tags of the share of images as prompted.")
    alignment_by_tag: dict[str, str] = Field(default_factory=dict)
    judge_accuracy: dict[str, str] = Field(default_factory=dict)
    images: int = 0


class FailureStatus(ApiModel):
    reason: str = Field(description="CamelCase, stable: OOMKilled, NodeLost, Hang, ...")
    class_: FailureClass = Field(
        default="Unknown", alias="class", description="What kind of failure that is."
    )
    message: str = Field(description="One sentence: what, where, what to do.", max_length=2048)
    exit_code: int | None = None
    pod: str | None = None
    node: str | None = None
    rank: int | None = None
    rule: str | None = Field(
        default=None, description="The rule of failurePolicy that decided, if one did."
    )
    charged: bool = Field(default=False, description="Whether it counts against maxRestarts.")
    attempt: int
    step: int = 0
    time: Time


class ExportStatus(ApiModel):
    url: str


class TrainingRunStatus(ApiModel):
    observed_generation: int = 0
    phase: Phase = "Pending"
    attempt: int = Field(default=0, description="Number of the current attempt, from 1.")
    restarts: int = Field(
        default=0, description="Attempts that followed a failure charged to failurePolicy."
    )
    interruptions: int = Field(
        default=0, description="Attempts that ended early without being charged."
    )
    restart_times: tuple[Time, ...] = Field(
        default=(), description="Of the charged failures within failurePolicy.window."
    )
    no_progress: int = Field(
        default=0, description="Charged failures in a row without a newer commit."
    )
    fruitless: int = Field(
        default=0, description="Endings in a row, charged or not, without a newer commit."
    )
    out_of_memory: int = Field(default=0, description="Attempts that ran out of memory.")
    next_attempt_time: Time | None = Field(
        default=None, description="The next attempt is not made before."
    )
    suspect_nodes: tuple[SuspectNode, ...] = Field(
        default=(), max_length=64, description="Nodes on which workers failed."
    )
    scaling: ScalingStatus | None = None
    current_attempt: AttemptStatus | None = None
    ledger: LedgerStatus | None = None
    preparation: PreparationStatus | None = None
    recipe_hash: str | None = None
    stage: StageStatus | None = None
    progress: ProgressStatus | None = None
    checkpoint: CheckpointStatus | None = None
    workers: WorkersStatus | None = None
    evaluation: EvaluationStatus | None = None
    export: ExportStatus | None = None
    last_failure: FailureStatus | None = None
    start_time: Time | None = None
    completion_time: Time | None = None
    conditions: tuple[Condition, ...] = Field(
        default=(),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
