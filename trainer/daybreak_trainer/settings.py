"""Reads what the operator gave this pod: the settings, the recipe and the secrets. Done once, at
the edge; everything further in gets frozen values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from daybreak_trainer import contract
from daybreak_trainer.contract import Message, RunSettings
from daybreak_trainer.recipe import Recipe, RecipeError, parse

OPTIONS_KEY = "options.json"
"""Key of a Secret whose value is a JSON object of fsspec options, taken as it is."""


class SettingsError(Exception):
    """The pod was started without what it needs; the message names the variable or file."""


@dataclass(frozen=True)
class Settings:
    run: RunSettings
    node: int
    """This pod's completion index, 0 ... `run.nodes` - 1."""
    recipe: Recipe
    work_dir: Path
    secrets_dir: Path

    def storage_options(self, role: str) -> dict[str, Any]:
        """As `storage_options`."""
        return storage_options(self.secrets_dir, role)


def storage_options(secrets_dir: Path, role: str) -> dict[str, Any]:
    """fsspec options of one role, from the files of its Secret: each key is an option, and
    `options.json` holds those that are not strings.

    Raises:
        SettingsError: a file is not UTF-8, or `options.json` is no JSON object.
    """
    folder = secrets_dir / role
    options: dict[str, Any] = {}
    if not folder.is_dir():
        return options
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"secret {file}: cannot be read as text: {error}") from None
        options |= _options(file, text) if file.name == OPTIONS_KEY else {file.name: text}
    return options


def _options(file: Path, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"secret {file}: not JSON: {error}") from None
    if not isinstance(options, dict):
        raise SettingsError(
            f"secret {file}: must be a JSON object of fsspec options, not {type(options).__name__}"
        )
    return options


def work_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The pod's writable volume."""
    return Path(environment.get(contract.ENV_WORK_DIR, contract.WORK_DIR))


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings and recipe of this pod.

    Raises:
        SettingsError: `DAYBREAK_RUN`, the pod's index or the recipe file is missing or not valid.
        RecipeError: the recipe is not one this trainer can train, or not the one the run names.
    """
    run = told(environment, contract.ENV_RUN, RunSettings)
    path = Path(environment.get(contract.ENV_RECIPE_PATH, contract.RECIPE_PATH))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"recipe {path}: {error}") from None
    recipe = parse(document)
    if recipe.hash != run.recipe_hash:
        raise RecipeError(
            f"{path} holds recipe {recipe.hash}, this attempt was made for {run.recipe_hash}; "
            "operator and trainer image must be of one version"
        )
    return Settings(
        run=run,
        node=node_index(environment, run.nodes),
        recipe=recipe,
        work_dir=work_dir(environment),
        secrets_dir=secrets_dir(environment),
    )


_Told = TypeVar("_Told", bound=Message)


def told(environment: Mapping[str, str], name: str, kind: type[_Told]) -> _Told:
    """What the operator says in a variable. Raises SettingsError: it is missing or not valid."""
    raw = environment.get(name)
    if raw is None:
        raise SettingsError(f"{name} is not set: the operator sets it on the pods of a run")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise SettingsError(f"{name}: {where}: {first['msg']}") from None


def secrets_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where Secrets are mounted, a folder a role."""
    return Path(environment.get(contract.ENV_SECRETS_DIR, contract.SECRETS_DIR))


def node_index(environment: Mapping[str, str], nodes: int) -> int:
    """This pod's, of so many. Raises SettingsError: it is none."""
    raw = environment.get(contract.ENV_NODE_INDEX, "0")
    if not (raw.isdecimal() and int(raw) < nodes):
        raise SettingsError(
            f"{contract.ENV_NODE_INDEX} is {raw!r}; it must be an index from 0 to {nodes - 1}"
        )
    return int(raw)
