"""`daybreak recipe`: look at recipes, compare and check them. Needs no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from daybreak_cli.errors import CommandError, said_plainly
from daybreak_cli.refusals import refusal
from daybreak_operator.api.duration import seconds
from daybreak_operator.api.spec import Budget, TrainingRunSpec
from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.plan.limits import Limits, refuse_without_limits
from daybreak_trainer.recipe import Recipe, RecipeError, presets, resolve

app = typer.Typer(no_args_is_help=True, help="Show, compare and check recipes.")
console = Console()
Which = Annotated[
    str, typer.Argument(help="A preset, or a YAML file with a recipe or TrainingRun.")
]


@app.command()
@said_plainly
def show(which: Which) -> None:
    """Print the complete recipe: the preset with everything that is laid over it."""
    typer.echo(yaml.safe_dump(_document(recipe_of(which)), sort_keys=False).rstrip())


@app.command()
@said_plainly
def diff(first: Which, second: Which) -> None:
    """Print every field in which two recipes differ."""
    table = Table("field", first, second)
    one, two = _flat(_document(recipe_of(first))), _flat(_document(recipe_of(second)))
    for field in dict.fromkeys([*one, *two]):
        if one.get(field) != two.get(field):
            table.add_row(field, *(str(side.get(field, "-")) for side in (one, two)))
    console.print(table)


@app.command()
@said_plainly
def validate(file: Which) -> None:
    """Check a recipe or a TrainingRun; exit code 2 with the field and the remedy."""
    recipe = recipe_of(file)
    stages = "1 stage" if len(recipe.stages) == 1 else f"{len(recipe.stages)} stages"
    console.print(f"{file}: recipe {recipe.hash} holds together, {stages}", highlight=False)


def limits_of(spec: TrainingRunSpec) -> Limits:
    """Of a run's budget and deadline. Raises RecipeError: the deadline is none."""
    return Limits.of(_budget(spec.budget), spec.deadline)


def _budget(given: Budget) -> BudgetSettings:
    return BudgetSettings(
        duration_seconds=seconds(given.duration) if given.duration else None,
        gpu_hour_price=float(given.gpu_hour_price) if given.gpu_hour_price else None,
        max_cost=float(given.max_cost) if given.max_cost else None,
    )


def recipe_of(which: str) -> Recipe:
    """Of a preset's name or a file. Raises CommandError: it is wrong, or lacks a limit."""
    document: dict[str, Any] = {"preset": which} if which in presets() else read(which)
    try:
        if "spec" not in document:
            return resolve(document)
        spec = spec_of(document, which)
        recipe = resolve(document["spec"]["recipe"])
        refuse_without_limits(recipe, limits_of(spec))
        return recipe
    except RecipeError as error:
        raise CommandError(f"{which}: {error}") from None


def read(file: str) -> dict[str, Any]:
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


def spec_of(document: dict[str, Any], file: str) -> TrainingRunSpec:
    """Of a TrainingRun. Raises CommandError: a field is wrong; it names the first."""
    try:
        spec = TrainingRunSpec.model_validate(document.get("spec", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
        what = first["msg"]
        if first["type"] == "extra_forbidden":
            what = "there is no such field; docs/api.md and `kubectl explain` list those there are"
        raise CommandError(f"{file}: spec{where}: {what}") from None
    if (wrong := refusal(spec)) is not None:
        raise CommandError(f"{file}: spec.{wrong}")
    return spec


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
