"""From a preset and overrides to a complete `Recipe`.

Overrides carry no defaults: an absent field means the preset's value. Objects are merged field by
field, lists are replaced whole. Every error names the field as the user wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import ValidationError

from daybreak_trainer.recipe.model import Recipe


class RecipeError(ValueError):
    """A recipe that cannot be: the message names the field and what to change."""


@cache
def presets() -> tuple[str, ...]:
    """Names of the presets that ship with this version."""
    folder = resources.files("daybreak_trainer.recipe") / "presets"
    return tuple(
        sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))
    )


@cache
def preset_text(name: str) -> str:
    """YAML of one preset.

    Raises:
        RecipeError: no such preset; the message lists those there are.
    """
    if name not in presets():
        raise RecipeError(
            f"recipe.preset: no preset named {name!r}; there are {', '.join(presets())}"
        )
    return (resources.files("daybreak_trainer.recipe") / "presets" / f"{name}.yaml").read_text()


@cache
def _preset(name: str) -> Any:
    """Parsed once: that takes ten times as long as all else here, and an operator that finds a
    thousand new runs does it for each. Not to be changed."""
    return yaml.safe_load(preset_text(name))


def resolve(overrides: Mapping[str, Any]) -> Recipe:
    """The complete recipe of `spec.recipe` (camelCase keys, `preset` among them).

    Raises:
        RecipeError: unknown preset or field, wrong type, or values that do not fit together.
    """
    name = overrides.get("preset")
    if not isinstance(name, str):
        raise RecipeError(f"recipe.preset is missing; it names one of {', '.join(presets())}")
    merged = _merge(_preset(name), {k: v for k, v in overrides.items() if k != "preset"})
    return parse({**merged, "preset": name})


def parse(document: Mapping[str, Any]) -> Recipe:
    """A complete recipe from its own JSON document.

    Raises:
        RecipeError: as `resolve`.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError("; ".join(_explain(e) for e in error.errors())) from None


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {
            key: _merge(base.get(key), over[key]) if key in over else base[key]
            for key in (*base, *over)
        }
    return over


def _explain(error: Any) -> str:
    path = "recipe"
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return f"{path}: {error['msg'].removeprefix('Value error, ')}"
