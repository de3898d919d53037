"""The recipe as pydantic models and presets. Imports no torch: the operator uses it too."""

from daybreak_trainer.recipe.model import Recipe
from daybreak_trainer.recipe.overrides import RecipeOverrides
from daybreak_trainer.recipe.resolve import RecipeError, parse, preset_text, presets, resolve

__all__ = ["Recipe", "RecipeError", "RecipeOverrides", "parse", "preset_text", "presets", "resolve"]
