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

    type: Annotated[str, Field(max_length=316)] = Field(
        description="Admitted, Running, Complete, Failed, Suspended, Degraded or CheckpointHealthy."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether that is so.")
    reason: Annotated[str, Field(min_length=1, max_length=1024)] = Field(
        description="Why, in CamelCase; stable, for programs."
    )
    message: Annotated[str, Field(max_length=32768)] = Field(
        description="Why, in a sentence, and where something is wrong what to do."
    )
    last_transition_time: Time = Field(description="When status last changed.")
    observed_generation: int = Field(
        default=0, description="The metadata.generation that the condition was made for."
    )


class StageStatus(ApiModel):
    """The stage of the recipe that is trained."""

    name: str = Field(description="As the recipe names it, such as 1024px.")
    index: int = Field(description="Its number, from 1.")
    of: int = Field(description="How many stages the recipe has.")


class ProgressStatus(ApiModel):
    """How far training is, as worker 0 last said."""

    step: int = Field(default=0, description="Optimizer steps that the model has.")
    total_steps: int | None = Field(
        default=None,
        description="Optimizer steps of the whole run, as it is planned now; with shares the plan "
        "follows the measured speed.",
    )
    samples: int = Field(default=0, description="Samples trained on.")
    percent: int = Field(default=0, description="step of totalSteps, 0 to 100.")
    images_per_second: str | None = Field(
        default=None, description="Images trained on per second, all workers together."
    )
    loss: str | None = Field(default=None, description="Training loss of recent steps.")
    estimated_completion_time: Time | None = Field(
        default=None,
        description="When the run will be complete at its present speed; only while it trains.",
    )
    training_seconds: str | None = Field(
        default=None, description="Seconds in training steps over all attempts."
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

    number: int = Field(description="Of the attempt, from 1; its Job is named `<run>-<number>`.")
    nodes: int = Field(description="Worker pods it was made with.")
    devices_per_node: int = Field(default=1, description="GPUs of a worker, or its ranks.")
    created_time: Time = Field(description="When its Job was wanted.")
    admitted_time: Time | None = Field(
        default=None, description="When every pod had a node: start-up counts from here."
    )
    first_step_time: Time | None = Field(
        default=None, description="When it finished its first optimizer step."
    )
    ended_time: Time | None = Field(default=None, description="When it ended.")
    released_time: Time | None = Field(
        default=None, description="When its last pod had ended, and its devices were free."
    )
    start_step: int = Field(
        default=0, description="Step of the commit that it began from; 0 without one."
    )


class LedgerStatus(ApiModel):
    """What the run's time went into: all of it, in seconds, up to accountedUntil.

    wall = productive + lost, in full. In `queue` and `suspended` no devices are held, and those of
    `preparation` are not counted; the rest of what is lost counts against goodput.
    """

    goodput: str = Field(
        default="0",
        description="Productive seconds over all but those queued, suspended or in preparation, "
        "0 to 1.",
    )
    gpu_hours: str = Field(
        default="0", description="Workers' GPUs (without any: ranks) times hours held."
    )
    cost: str | None = Field(default=None, description="gpuHours times budget.gpuHourPrice.")
    productive_seconds: int = Field(
        default=0, description="Seconds in training steps that are part of the model."
    )
    lost_seconds: dict[str, int] = Field(
        default_factory=dict,
        description="By cause: queue, suspended, preparation, restart (between attempts), startup "
        "(admission to first step), stopping (from an attempt's end until its pods are gone), "
        "those that the trainer names (checkpoint, data_wait, "
        "evaluation, export, ...) and wasted (steps that were rolled back, and all else).",
    )
    held_seconds: int = Field(default=0, description="Seconds in which workers held devices.")
    device_seconds: int = Field(
        default=0, description="The same, times how many devices it held: gpuHours in seconds."
    )
    accounted_until: Time | None = Field(
        default=None, description="Every second from the run's creation to here is accounted for."
    )


class SuspectNode(ApiModel):
    """A node on which this run's workers failed."""

    name: str = Field(description="The node's name.")
    times: tuple[Time, ...] = Field(
        default=(), description="When workers failed there, within healthPolicy.nodeWindow."
    )
    reason: str = Field(description="Of the last of these failures, as lastFailure.reason.")
    avoid: bool = Field(
        default=False, description="A rule of failurePolicy with avoidNode keeps the run off it."
    )


class ScalingStatus(ApiModel):
    """The size in effect and why; spec.workers.nodes is what the user wants."""

    nodes: int = Field(description="Worker pods of the current or next attempt.")
    reason: str = Field(description="Requested, NodesLost or GrownBack.")
    time: Time = Field(description="When the size last changed.")


class PreparationStatus(ApiModel):
    """How far data.prepare is."""

    state: Literal["Running", "Done", "Failed"] = Field(
        description="Done is for good: the data is not looked at again."
    )
    message: str = Field(default="", description="What came of it; why, where it failed.")


class CheckpointStatus(ApiModel):
    """The newest committed checkpoint: what the next attempt resumes from."""

    step: int = Field(description="Optimizer steps in it.")
    time: Time = Field(description="When it was committed, by the worker's clock.")
    url: str = Field(description="Where it is; another run's checkpoint.resumeFrom takes it.")


class WorkersStatus(ApiModel):
    """The worker pods: what kubectl scale and an autoscaler read."""

    desired: int = Field(description="Worker pods of the attempt at work; 0 between attempts.")
    ready: int = Field(default=0, description="Those whose trainer is up.")
    summary: str | None = Field(default=None, description="ready/desired, for a column.")
    selector: str = Field(description="Label selector of the worker pods.")


class EvaluationStatus(ApiModel):
    """What the finished model scored on evaluation.benchmark."""

    benchmark: str = Field(description="The benchmark's name.")
    alignment: str = Field(description="Mean over tags of the share of images as prompted, 0 to 1.")
    alignment_by_tag: dict[str, str] = Field(
        default_factory=dict, description="The same share for each tag of prompts, 0 to 1."
    )
    judge_accuracy: dict[str, str] = Field(
        default_factory=dict,
        description="By tag, the share of real images that the judge itself gets right, 0 to 1.",
    )
    images: int = Field(default=0, description="Images that were drawn and judged.")


class FailureStatus(ApiModel):
    """Why the last attempt that failed did, or what ended the run."""

    reason: str = Field(description="CamelCase, stable: OOMKilled, NodeLost, Hang, ...")
    class_: FailureClass = Field(
        default="Unknown", alias="class", description="What kind of failure that is."
    )
    message: str = Field(description="One sentence: what, where, what to do.", max_length=2048)
    exit_code: int | None = Field(
        default=None, description="Of the trainer container of the worker that failed first."
    )
    pod: str | None = Field(default=None, description="The pod of that worker.")
    node: str | None = Field(default=None, description="The node it was on.")
    rank: int | None = Field(default=None, description="The rank that failed first.")
    rule: str | None = Field(
        default=None, description="The rule of failurePolicy that decided, if one did."
    )
    charged: bool = Field(default=False, description="Whether it counts against maxRestarts.")
    attempt: int = Field(description="Number of the attempt; 0 before the first.")
    step: int = Field(default=0, description="Optimizer step at which it failed; 0 if not known.")
    time: Time = Field(description="When the operator saw it.")


class ExportStatus(ApiModel):
    """The finished model."""

    url: str = Field(description="Where it is: a folder that diffusers loads.")


class TrainingRunStatus(ApiModel):
    """What the operator knows of the run; nobody else writes it."""

    observed_generation: int = Field(
        default=0, description="The metadata.generation that this status was made for."
    )
    phase: Phase = Field(
        default="Pending",
        description="The run's state in a word, for people; programs read conditions.",
    )
    attempt: int = Field(default=0, description="Number of the current attempt, from 1.")
    restarts: int = Field(
        default=0, description="Attempts that followed a failure charged to failurePolicy."
    )
    interruptions: int = Field(
        default=0, description="Attempts that ended early without being charged."
    )
    restart_times: tuple[Time, ...] = Field(
        default=(), description="When they failed, those within failurePolicy.window."
    )
    no_progress: int = Field(
        default=0, description="Charged failures in a row without a newer commit."
    )
    fruitless: int = Field(
        default=0, description="Endings in a row, charged or not, without a newer commit."
    )
    out_of_memory: int = Field(default=0, description="Attempts that ran out of memory.")
    next_attempt_time: Time | None = Field(
        default=None, description="The next attempt is not made before that."
    )
    suspect_nodes: tuple[SuspectNode, ...] = Field(
        default=(), max_length=64, description="Nodes on which workers failed."
    )
    scaling: ScalingStatus | None = None
    current_attempt: AttemptStatus | None = None
    ledger: LedgerStatus | None = None
    preparation: PreparationStatus | None = None
    recipe_hash: str | None = Field(
        default=None,
        description="Of the recipe that the run trains by, in ConfigMap `<run>-recipe-<hash>`.",
    )
    stage: StageStatus | None = None
    progress: ProgressStatus | None = None
    checkpoint: CheckpointStatus | None = None
    workers: WorkersStatus | None = None
    evaluation: EvaluationStatus | None = None
    export: ExportStatus | None = None
    last_failure: FailureStatus | None = None
    start_time: Time | None = Field(
        default=None, description="When the first attempt, or preparing its data, began."
    )
    completion_time: Time | None = Field(
        default=None, description="When the run was over, complete or failed."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="What is true of the run, since when, and why.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
