"""`status` of a TrainingRun: what the operator knows, for people first."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from daybreak_operator.api.base import ApiModel

Phase = Literal[
    "Pending", "Queued", "Starting", "Running", "Restarting", "Suspended", "Complete", "Failed"
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


class CheckpointStatus(ApiModel):
    step: int
    time: Time
    url: str


class WorkersStatus(ApiModel):
    desired: int = Field(description="Nodes of the current attempt.")
    ready: int = 0
    selector: str = Field(description="Label selector of the worker pods.")


class EvaluationStatus(ApiModel):
    benchmark: str
    alignment: str = Field(description="Mean over tags of the share of images as prompted.")
    alignment_by_tag: dict[str, str] = Field(default_factory=dict)
    judge_accuracy: dict[str, str] = Field(default_factory=dict)
    images: int = 0


class FailureStatus(ApiModel):
    reason: str
    message: str
    exit_code: int | None = None
    pod: str | None = None
    attempt: int
    step: int = 0
    time: Time


class ExportStatus(ApiModel):
    url: str


class TrainingRunStatus(ApiModel):
    observed_generation: int = 0
    phase: Phase = "Pending"
    attempt: int = Field(default=0, description="Number of the current attempt, from 1.")
    restarts: int = Field(default=0, description="Failed attempts charged to failurePolicy.")
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
