"""`daybreak plan`: what a run will come to, and whether it fits its limits and its devices. It
needs no cluster and no GPU, and downloads nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from daybreak_cli.errors import CommandError, said_plainly
from daybreak_cli.recipes import limits_of, read, recipe_of, spec_of
from daybreak_operator.api.duration import Interval
from daybreak_operator.api.spec import EvaluationSpec, TrainingRunSpec
from daybreak_operator.children.job import gpus
from daybreak_trainer.recipe import Recipe, RecipeError

if TYPE_CHECKING:  # they need torch, which commands that plan nothing do not wait for
    from daybreak_trainer.plan.forecast import Forecast
    from daybreak_trainer.plan.memory import Layout

console = Console()
_DEVICE, _PRODUCT = "NVIDIA H200", "nvidia.com/gpu.product"
_TEXT_WIDTH = 2048
"""Assumed of an encoder whose width is not known: a percent of all FLOPs."""
_MANY_SHAPES = 100
_PLANNED = "steps follow, and are planned anew while the run measures"


@said_plainly
def plan(
    file: Annotated[Path, typer.Argument(help="YAML file of a TrainingRun.")],
    images_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=SPEED,...",
            help="Measured speed over all devices: by resolution, as in 512=1300,1024=330, or by "
            "stage, as in stage0=1300,stage1=330.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="What computes, by its CUDA name. Left out: as the run's nodeSelector names it "
            f"({_PRODUCT}), or an {_DEVICE}."
        ),
    ] = None,
    mfu: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1.0,
            help="Where no speed is given: the share of its peak that is assumed, frozen networks "
            "included.",
        ),
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for scripts.")] = False,
) -> None:
    """Print what a run will come to before it costs anything; refuse what cannot fit."""
    from daybreak_trainer.plan.forecast import forecast, short_warm_ups
    from daybreak_trainer.plan.memory import device_bytes, unknown

    spec, recipe = spec_of(read(str(file)), str(file)), recipe_of(str(file))
    layout, name = _layout(spec), device or _device(spec)
    work, parameters = work_and_parameters(recipe)
    if images_per_second is not None:
        speeds, source = _measured(recipe, images_per_second), "measured elsewhere: given"
    else:
        speeds = _by_formula(recipe, work, layout, name, mfu)
        source = f"formula: {name}, assumed {mfu:.0%} of its peak"
    try:
        found = forecast(
            recipe,
            limits_of(spec),
            speeds,
            layout.devices,
            now=time.time(),
            parameters=parameters,
            keep_last=spec.checkpoint.keep_last,
        )
        _refuse_too_large(recipe, parameters, layout, name)
    except RecipeError as error:
        raise CommandError(f"{file}: {error}") from None
    memory, shapes = device_bytes(recipe, parameters, layout), _shapes(recipe, layout)
    left_out = unknown(recipe)
    told = [
        *short_warm_ups(recipe, found),
        *_too_many(shapes),
        *(_for_cpus(spec, name) if images_per_second is None and device is None else ()),
        *_left_out(left_out),
        *_lent(recipe, layout),
    ]
    if as_json:
        document = {
            **dataclasses.asdict(found),
            "memory_bytes": memory,
            "compiled_shapes": shapes[0],
            "speed_from": source,
            "device": name,
            "devices": layout.devices,
            "warnings": told,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    ends = "steps are the recipe's" if recipe.is_fixed else _PLANNED
    _print(found, f"{source}; {ends}", layout.devices, parameters)
    console.print(f"memory of {name} (formula): {decimal(memory)} and what kernels take")
    if shapes[0]:
        console.print(
            f"compiled before the first step: {shapes[0]} shapes, up to {shapes[1]} where the data "
            "has buckets"
        )
    for warning in told:
        console.print(f"warning: {warning}", markup=False, highlight=False)


def _print(found: Forecast, source: str, devices: int, parameters: int) -> None:
    table = Table("stage", "steps", "samples", "images/s", "hours", "GPU-hours", "cost")
    for stage in found.stages:
        table.add_row(
            f"{stage.resolution}px",
            f"{stage.steps:,}",
            f"{stage.samples:,}",
            f"{stage.images_per_second:,.0f}",
            f"{stage.seconds / 3600:.2f}",
            f"{stage.gpu_hours:,.1f}",
            "-" if stage.cost is None else f"{stage.cost:,.2f}",
        )
    console.print(table)
    console.print(f"images/s: {source}")
    console.print(f"{devices} devices, {parameters / 1e9:.2f} billion parameters")
    console.print(f"checkpoints (formula): {decimal(found.storage_bytes)}")


def work_and_parameters(recipe: Recipe) -> tuple[list[float], int]:
    """FLOPs of training on an image in each stage, without frozen networks, and parameters of the
    denoiser."""
    import torch

    from daybreak_trainer.models import denoiser, flops
    from daybreak_trainer.models.tricks import Tricks
    from daybreak_trainer.plan.networks import text_width

    width = text_width(recipe) or _TEXT_WIDTH
    with torch.device("meta"):
        model = denoiser.build(recipe, width)
    work = [
        flops.per_sample(
            recipe,
            height=stage.resolution,
            width=stage.resolution,
            text_width=width,
            tricks=Tricks.of(recipe, stage),
        ).model
        for stage in recipe.stages
    ]
    return work, sum(parameter.numel() for _, parameter in model.named_parameters())


def _by_formula(
    recipe: Recipe, work: list[float], layout: Layout, device: str, mfu: float
) -> list[float]:
    """Images/s of each stage over all devices, frozen networks included where they are known."""
    from daybreak_trainer.plan.networks import frozen_cost
    from daybreak_trainer.telemetry.devices import peak_flops_per_second

    if (peak := peak_flops_per_second(device)) is None:
        raise CommandError(
            f"--device: the peak of {device!r} is not known; give --images-per-second"
        )
    all_of_it = [
        flops + frozen_cost(recipe, stage).flops
        for flops, stage in zip(work, recipe.stages, strict=True)
    ]
    return [peak * mfu * layout.devices / flops for flops in all_of_it]


def _refuse_too_large(recipe: Recipe, parameters: int, layout: Layout, device: str) -> None:
    """Raises CommandError: the devices' memory, where it is known, does not hold it."""
    from daybreak_trainer.plan.memory import device_bytes, largest_device_batch
    from daybreak_trainer.telemetry.devices import memory_bytes

    capacity, needed = memory_bytes(device), device_bytes(recipe, parameters, layout)
    if capacity is None or needed <= capacity:
        return
    said = f"a device would hold {decimal(needed)} (formula), {device} has {decimal(capacity)}"
    without = dataclasses.replace(layout, evaluates=False)
    if device_bytes(recipe, parameters, without) <= capacity:
        raise RecipeError(
            f"{said}, with the text encoder that an evaluation copies to it: take more devices or "
            "larger ones, or set spec.evaluation.validationSamples: 0 and interval: 0s"
        )
    if images := largest_device_batch(recipe, parameters, layout, capacity):
        raise RecipeError(f"{said}: set spec.compute.deviceBatchSize to {images}, or less")
    raise RecipeError(
        f"{said}, which is too little for one image at once: take spec.compute."
        "activationCheckpointing: blocks, more devices or larger ones, or a smaller recipe.denoiser"
    )


def _shapes(recipe: Recipe, layout: Layout) -> tuple[int, int]:
    """That are compiled where the data is square, and where it has all buckets that `daybreak
    prepare --buckets` makes."""
    from daybreak_trainer.data.errors import DatasetError
    from daybreak_trainer.models.padding import Padding
    from daybreak_trainer.prepare.buckets import sizes

    if layout.compile == "none":
        return 0, 0
    lengths, square = len(Padding.of(recipe.text).lengths), len(recipe.stages)
    try:
        buckets = len(sizes(recipe.stages[-1].resolution, recipe.pixels_per_token))
    except DatasetError:  # none that its patches divide
        buckets = 1
    return lengths * square, lengths * square * buckets


def _too_many(shapes: tuple[int, int]) -> list[str]:
    if shapes[1] <= _MANY_SHAPES:
        return []
    return [
        f"up to {shapes[1]} shapes are compiled before the first step, each block for each: raise "
        "recipe.text.paddingMultiple, prepare fewer buckets, or set spec.compute.compile: none"
    ]


def _for_cpus(spec: TrainingRunSpec, device: str) -> list[str]:
    if gpus(spec):
        return []
    return [
        "the run asks for no GPU (spec.workers.resources.limits), and speed and memory above "
        f"are of {device}; for CPUs give --images-per-second, measured in a short run"
    ]


def _left_out(networks: tuple[str, ...]) -> list[str]:
    return [
        f"{network} is in neither images/s nor memory: how large it is is not known without its "
        "weights. The run computes it in every step, so it trains on fewer images than a formula "
        "says: measure, and give --images-per-second"
        for network in networks
    ]


def _lent(recipe: Recipe, layout: Layout) -> list[str]:
    from daybreak_trainer.plan.networks import lent_cost

    return [
        f"{network} is not in memory: an evaluation copies it to every device, two bytes a weight, "
        "and how large it is is not known without its weights"
        for network in (lent_cost(recipe).unknown if layout.evaluates else ())
    ]


def _measured(recipe: Recipe, text: str) -> list[float]:
    stages = recipe.stages
    try:
        parts = (part.split("=") for part in text.split(","))
        given = {key.strip(): float(value) for key, value in parts}
        speeds = [
            given[own] if (own := f"stage{number}") in given else given[f"{stage.resolution}"]
            for number, stage in enumerate(stages)
        ]
    except (ValueError, KeyError):
        sides = [stage.resolution for stage in stages]
        keys = [f"{s}" if sides.count(s) == 1 else f"stage{n}" for n, s in enumerate(sides)]
        wanted = ",".join(f"{key}=SPEED" for key in keys)
        raise CommandError(f"--images-per-second is {text!r}; it must be {wanted}") from None
    if min(speeds) <= 0:
        raise CommandError("--images-per-second: a speed must be above 0")
    return speeds


def _device(spec: TrainingRunSpec) -> str:
    selected = spec.workers.template.get("spec", {}).get("nodeSelector", {}).get(_PRODUCT, "")
    return str(selected) or _DEVICE


def _layout(spec: TrainingRunSpec) -> Layout:
    from daybreak_trainer.parallel import topology
    from daybreak_trainer.plan.memory import Layout

    processes, nodes = spec.workers.processes_per_node, spec.workers.nodes
    own = processes if isinstance(processes, int) else max(1, gpus(spec))
    compute = spec.compute
    mesh = topology.plan(compute.sharding, world=nodes * own, nodes=nodes, ranks_per_node=own)
    return Layout(
        devices=nodes * own,
        shards=mesh.shape[-1],
        device_batch_size=compute.device_batch_size,
        compile=compute.compile,
        activation_checkpointing=compute.activation_checkpointing,
        memory_budget=compute.memory_budget,
        evaluates=_evaluates(spec.evaluation),
    )


def _evaluates(evaluation: EvaluationSpec) -> bool:
    """While the run holds its training state: in its course, or for the validation loss of the
    last step."""
    interval = Interval.parse(evaluation.interval)
    draws = bool(evaluation.prompts or evaluation.benchmark)
    return evaluation.validation_samples > 0 or (draws and bool(interval.seconds or interval.steps))
