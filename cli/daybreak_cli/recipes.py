"""`daybreak recipe`: look at recipes, compare and check them; `daybreak plan`: what a run will come
to. Neither needs a cluster."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from daybreak_cli.errors import CommandError, said_plainly
from daybreak_operator.api.duration import seconds
from daybreak_operator.api.spec import Budget, TrainingRunSpec
from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.plan.forecast import Forecast, forecast
from daybreak_trainer.plan.limits import Limits, refuse_without_limits
from daybreak_trainer.recipe import Recipe, RecipeError, presets, resolve

app = typer.Typer(no_args_is_help=True, help="Show, compare and check recipes.")
console = Console()
Which = Annotated[
    str, typer.Argument(help="A preset, or a YAML file with a recipe or TrainingRun.")
]
_TEXT_WIDTH = 2048
"""Assumed of a pretrained encoder, whose width is not in a recipe: a percent of all FLOPs."""


@app.command()
@said_plainly
def show(which: Which) -> None:
    """Print the complete recipe: the preset with everything that is laid over it."""
    typer.echo(yaml.safe_dump(_document(_recipe(which)), sort_keys=False).rstrip())


@app.command()
@said_plainly
def diff(first: Which, second: Which) -> None:
    """Print every field in which two recipes differ."""
    table = Table("field", first, second)
    one, two = _flat(_document(_recipe(first))), _flat(_document(_recipe(second)))
    for field in dict.fromkeys([*one, *two]):
        if one.get(field) != two.get(field):
            table.add_row(field, *(str(side.get(field, "-")) for side in (one, two)))
    console.print(table)


@app.command()
@said_plainly
def validate(file: Which) -> None:
    """Check a recipe or a TrainingRun; exit code 2 with the field and the remedy."""
    recipe = _recipe(file)
    console.print(f"{file}: recipe {recipe.hash}, {len(recipe.stages)} stages", highlight=False)


@said_plainly
def plan(
    file: Annotated[Path, typer.Argument(help="YAML file of a TrainingRun.")],
    images_per_second: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS=SPEED,...",
            help="Measured speed over all devices by resolution, as in 512=1300,1024=330.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where no speed is given: what computes, by its CUDA name.")
    ] = "NVIDIA H200",
    mfu: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="And the share of its peak that is assumed.")
    ] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for scripts.")] = False,
) -> None:
    """Print what a run will come to before it costs anything; refuse what cannot fit."""
    spec = _spec(_read(str(file)), str(file))
    recipe = _recipe(str(file))
    devices = _devices(spec)
    work, parameters = work_and_parameters(recipe)
    if images_per_second is not None:
        speeds, source = _measured(recipe, images_per_second), "measured elsewhere: given"
    else:
        from daybreak_trainer.telemetry.devices import peak_flops_per_second

        if (peak := peak_flops_per_second(device)) is None:
            raise CommandError(
                f"--device: the peak of {device!r} is not known; give --images-per-second"
            )
        speeds = [peak * mfu * devices / flops for flops in work]
        source = f"formula: {device}, assumed {mfu:.0%} of its peak"
    try:
        found = forecast(
            recipe,
            _limits(spec),
            speeds,
            devices,
            now=time.time(),
            parameters=parameters,
            keep_last=spec.checkpoint.keep_last,
            device_batch_size=spec.compute.device_batch_size,
        )
    except RecipeError as error:
        raise CommandError(f"{file}: {error}") from None
    if as_json:
        document = dataclasses.asdict(found)
        typer.echo(json.dumps({**document, "speed_from": source, "devices": devices}, indent=2))
    else:
        _print(found, source, devices, parameters)


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
    console.print(f"images/s: {source}; steps follow, and are planned anew while the run measures")
    console.print(f"{devices} devices, {parameters / 1e9:.2f} billion parameters")
    console.print(f"checkpoints (formula): {decimal(found.storage_bytes)}")
    console.print(
        f"memory of a device (formula): {decimal(found.memory_bytes)} and what teachers, "
        "text encoders and kernels take"
    )


def work_and_parameters(recipe: Recipe) -> tuple[list[float], int]:
    """FLOPs of training on an image in each stage, and parameters of the denoiser."""
    import torch

    from daybreak_trainer.models import denoiser, flops
    from daybreak_trainer.models.tricks import Tricks

    width = recipe.text.hidden_size or _TEXT_WIDTH
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


def _measured(recipe: Recipe, text: str) -> list[float]:
    try:
        given = {int(key): float(value) for key, value in (p.split("=") for p in text.split(","))}
        speeds = [given[stage.resolution] for stage in recipe.stages]
    except (ValueError, KeyError):
        wanted = ",".join(f"{r}=SPEED" for r in sorted({s.resolution for s in recipe.stages}))
        raise CommandError(f"--images-per-second is {text!r}; it must be {wanted}") from None
    if min(speeds) <= 0:
        raise CommandError("--images-per-second: a speed must be above 0")
    return speeds


def _devices(spec: TrainingRunSpec) -> int:
    limits = spec.workers.resources.get("limits", {})
    gpus = sum(int(str(n)) for name, n in limits.items() if name.endswith("/gpu"))
    processes = spec.workers.processes_per_node
    return spec.workers.nodes * (processes if isinstance(processes, int) else max(1, gpus))


def _limits(spec: TrainingRunSpec) -> Limits:
    return Limits.of(_budget(spec.budget), spec.deadline)


def _budget(given: Budget) -> BudgetSettings:
    return BudgetSettings(
        duration_seconds=seconds(given.duration) if given.duration else None,
        gpu_hour_price=float(given.gpu_hour_price) if given.gpu_hour_price else None,
        max_cost=float(given.max_cost) if given.max_cost else None,
    )


def _recipe(which: str) -> Recipe:
    document: dict[str, Any] = {"preset": which} if which in presets() else _read(which)
    try:
        if "spec" not in document:
            return resolve(document)
        spec = _spec(document, which)
        recipe = resolve(document["spec"]["recipe"])
        refuse_without_limits(recipe, _limits(spec))
        return recipe
    except RecipeError as error:
        raise CommandError(f"{which}: {error}") from None


def _read(file: str) -> dict[str, Any]:
    """The TrainingRun of a file, which may hold other objects too, or its recipe."""
    try:
        documents = [d for d in yaml.safe_load_all(Path(file).read_text()) if isinstance(d, dict)]
    except OSError as error:
        listed = ", ".join(presets())
        raise CommandError(f"{file} is no preset ({listed}), and no file: {error}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{file}: not YAML: {error}") from None
    runs = [document for document in documents if document.get("kind") == "TrainingRun"]
    if not (runs or documents):
        raise CommandError(f"{file}: there is no recipe and no TrainingRun in it")
    return (runs or documents)[0]


def _spec(document: dict[str, Any], file: str) -> TrainingRunSpec:
    try:
        return TrainingRunSpec.model_validate(document.get("spec", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CommandError(f"{file}: spec.{where}: {first['msg']}") from None


def _document(recipe: Recipe) -> dict[str, Any]:
    return dict(json.loads(recipe.to_json()))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            field: inner
            for key, part in items
            for field, inner in _flat(part, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}
