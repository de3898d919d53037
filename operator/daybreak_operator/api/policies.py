"""`spec.failurePolicy` and `spec.healthPolicy`: when an attempt has failed, and what comes then."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

from daybreak_operator.api.base import ApiModel, cel
from daybreak_operator.api.types import Duration

FailureClass = Literal[
    "User", "Data", "OutOfMemory", "Infrastructure", "Interruption", "Hang", "Unknown"
]
"""User: a recipe, a setting or code that a new attempt would fail on again · Data: the same of the
dataset · OutOfMemory · Infrastructure: a device, a link, a crash in native code, a lost node ·
Interruption: somebody asked the workers to go · Hang · Unknown."""
FAILURE_CLASSES: tuple[FailureClass, ...] = get_args(FailureClass)


class Backoff(ApiModel):
    """The pause before an attempt that follows one without a new checkpoint: doubled each time, and
    shorter by up to a quarter, so that runs which ended together do not meet again."""

    initial: Duration = Field(
        default="10s",
        description="A duration such as 10s, before the first of them; after a new checkpoint "
        "there is none.",
    )
    max: Duration = Field(default="10m", description="A duration such as 10m: the longest.")


class ExitCodes(ApiModel):
    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "self.operator != 'In' || !(0 in self.values)",
                "exit code 0 is success and cannot be listed with operator In",
            )
        )
    )

    operator: Literal["In", "NotIn"] = Field(description="In or NotIn values.")
    values: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(
        min_length=1, max_length=64, description="Exit codes of the trainer container."
    )


class FailureRule(ApiModel):
    """What an ending of this kind means for the run; the first rule that matches decides."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.onExitCodes), has(self.onReasons), has(self.onClasses), "
                "has(self.onPodConditions)].filter(x, x).size() == 1",
                "a rule has exactly one of onExitCodes, onReasons, onClasses, onPodConditions",
            )
        )
    )

    name: Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description="Shown in status.lastFailure.rule."
    )
    action: Literal["FailRun", "Restart", "RestartUncharged"] = Field(
        description="FailRun ends the run; Restart is charged to maxRestarts, RestartUncharged not."
    )
    avoid_node: bool = Field(
        default=False,
        description="Also keep this run's later attempts off the node, "
        "whatever healthPolicy.nodeFailures says.",
    )
    on_exit_codes: ExitCodes | None = Field(
        default=None, description="Matches the first failed worker's exit code."
    )
    on_reasons: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Matches status.lastFailure.reason, such as OOMKilled, NodeLost, Hang.",
    )
    on_classes: tuple[FailureClass, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description="Matches status.lastFailure.class.",
    )
    on_pod_conditions: tuple[Annotated[str, Field(min_length=1, max_length=316)], ...] | None = (
        Field(
            default=None,
            min_length=1,
            max_length=16,
            description="Matches types of pod conditions that are true, such as DisruptionTarget.",
        )
    )


class FailurePolicy(ApiModel):
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=5,
        description="Attempts that may fail within window before the run does. Stops on request, "
        "evictions and lost nodes are not counted, nor are failures that a new attempt could not "
        "cure: they end the run.",
    )
    window: Duration = Field(
        default="6h",
        description="A duration such as 6h: the sliding window of maxRestarts, where 0s is the "
        "whole run.",
    )
    no_progress_limit: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=3,
        description="Charged failures in a row without a newer committed checkpoint before the run "
        "fails with NoProgress; 0 is no limit.",
    )
    backoff: Backoff = Field(
        default=Backoff(), description="The pause before an attempt after one without progress."
    )
    rules: tuple[FailureRule, ...] = Field(
        default=(), max_length=20, description="Exceptions, the first that matches."
    )


class HealthPolicy(ApiModel):
    """How long workers may take to start and to move on, and when a node is avoided."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            *(
                (
                    f"duration(self.{name}) > duration('0s')",
                    f"healthPolicy.{name} must be longer than 0s",
                )
                for name in (
                    "startupDeadline",
                    "progressDeadline",
                    "imagePullDeadline",
                    "schedulingDeadline",
                )
            )
        )
    )

    startup_deadline: Duration = Field(
        default="30m",
        description="A duration such as 30m: longest time from admission (all pods have a node) to "
        "an attempt's first step. Queueing does not count.",
    )
    progress_deadline: Duration = Field(
        default="15m",
        description="A duration such as 15m: longest time between two signs of progress after the "
        "first step. Then workers dump their stacks and end with code 76.",
    )
    image_pull_deadline: Duration = Field(
        default="10m",
        description="A duration such as 10m: longest time that a worker's image may fail to be "
        "pulled, or its container to be configured, before the run fails and says why.",
    )
    scheduling_deadline: Duration = Field(
        default="5m",
        description="A duration such as 5m: longest time that some workers wait for a node while "
        "others hold one. Then a run with minNodes goes on with the nodes it has; another gives "
        "them back, waits and tries again. Workers that all wait are queued, for as long as it "
        "takes.",
    )
    node_failures: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2,
        description="Failures of infrastructure on one node within nodeWindow after which this "
        "run avoids it; 0 never avoids one.",
    )
    node_window: Duration = Field(
        default="24h",
        description="A duration such as 24h: how long a node's failures are remembered.",
    )
    rank_restarts: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3,
        description="Times that crashed ranks are started again inside their pods, without a "
        "checkpoint in between, before the attempt counts as failed.",
    )
    non_finite_steps: Annotated[int, Field(ge=1)] = Field(
        default=10,
        description="Steps in a row without a finite gradient before the run goes back to its last "
        "checkpoint and passes over the data in between.",
    )
