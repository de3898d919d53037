"""Reads what the operator gave this pod: the settings, the recipe and the secrets. Done once, at
the edge; everything further in gets frozen values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from daybreak_trainer import contract
from daybreak_trainer.contract import RunSettings
from daybreak_trainer.recipe import Recipe, RecipeError, parse

OPTIONS_KEY = "options.json"
"""Key of a Secret whose value is a JSON object of fsspec options, taken as it is."""


class SettingsError(Exception):
    """The pod was started without what it needs; the message names the variable or file."""


@dataclass(frozen=True)
class Settings:
    run: RunSettings
    recipe: Recipe
    work_dir: Path
    secrets_dir: Path

    def storage_options(self, role: str) -> dict[str, Any]:
        """fsspec options of one role, from the files of its Secret: each key is an option, and
        `options.json` holds those that are not strings.

        Raises:
            SettingsError: `options.json` is no JSON object.
        """
        folder = self.secrets_dir / role
        options: dict[str, Any] = {}
        if not folder.is_dir():
            return options
        for file in sorted(folder.iterdir()):
            if file.name.startswith(".") or not file.is_file():
                continue
            if file.name != OPTIONS_KEY:
                options[file.name] = file.read_text().strip()
                continue
            try:
                options.update(json.loads(file.read_text()))
            except (ValueError, TypeError) as error:
                raise SettingsError(f"secret {file}: not a JSON object: {error}") from error
        return options


def work_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """The pod's writable volume."""
    return Path(environment.get(contract.ENV_WORK_DIR, contract.WORK_DIR))


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings and recipe of this pod.

    Raises:
        SettingsError: `DAYBREAK_RUN` or the recipe file is missing or no valid JSON.
        RecipeError: the recipe is not one this trainer can train, or not the one the run names.
    """
    raw = environment.get(contract.ENV_RUN)
    if raw is None:
        raise SettingsError(f"{contract.ENV_RUN} is not set: the operator sets it on worker pods")
    try:
        run = RunSettings.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{contract.ENV_RUN}: {where}: {first['msg']}") from error
    path = Path(environment.get(contract.ENV_RECIPE_PATH, contract.RECIPE_PATH))
    try:
        recipe = parse(json.loads(path.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise SettingsError(f"recipe {path}: {error}") from error
    if recipe.hash != run.recipe_hash:
        raise RecipeError(
            f"{path} holds recipe {recipe.hash}, this attempt was made for {run.recipe_hash}; "
            "operator and trainer image must be of one version"
        )
    return Settings(
        run=run,
        recipe=recipe,
        work_dir=work_dir(environment),
        secrets_dir=Path(environment.get(contract.ENV_SECRETS_DIR, contract.SECRETS_DIR)),
    )
