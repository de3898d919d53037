"""What the API server refuses of a TrainingRun by rules over several fields, as far as plans are
made of them. The server's own are CEL in the CRD; a test holds that these say the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.spec import Budget, Compute, TrainingRunSpec, Workers


def refusal(spec: TrainingRunSpec) -> str | None:
    """The first rule that does not hold, as the server says it."""
    rules = chain(_workers(spec.workers), _budget(spec.budget), _compute(spec.compute))
    return next(rules, None)


def _workers(workers: Workers) -> Iterator[str]:
    fewest, most = workers.min_nodes, workers.max_nodes
    if fewest is not None and fewest > workers.nodes:
        yield "workers.nodes must not be below workers.minNodes"
    if most is not None and workers.nodes > most:
        yield "workers.nodes must not exceed workers.maxNodes"


def _budget(budget: Budget) -> Iterator[str]:
    if budget.max_cost is not None and budget.gpu_hour_price is None:
        yield "budget.maxCost needs budget.gpuHourPrice: the price of one GPU for an hour"
    if budget.duration is not None and not seconds(budget.duration):
        yield "budget.duration must be longer than 0s"
    if budget.gpu_hour_price is not None and not float(budget.gpu_hour_price):
        yield "budget.gpuHourPrice must be more than 0; leave it out where GPUs cost nothing"
    if budget.max_cost is not None and not float(budget.max_cost):
        yield "budget.maxCost must be more than 0"


def _compute(compute: Compute) -> Iterator[str]:
    if compute.activation_checkpointing == "budget" and compute.compile != "blocks":
        yield "compute.activationCheckpointing: budget needs compute.compile: blocks"
