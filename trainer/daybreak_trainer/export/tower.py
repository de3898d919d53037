"""What of a text tower is not among the weights, as files: beside averages that are exported later,
on a machine that has no data.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from daybreak_trainer.models import text as texts
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe import Recipe

FOLDER = "text"


def tower_files(tower: TextTower) -> dict[str, bytes]:
    """By name; of a frozen encoder none, for the recipe says where it is."""
    if not tower.trained:
        return {}
    config: Any = tower.encoder.config
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / FOLDER
        tower.tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        return {
            file.relative_to(name).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }


def read_tower(recipe: Recipe, folder: Path) -> TextTower:
    """The tower of a recipe; a trained one's files lie in `folder`, and its weights are not yet its
    own.

    Raises:
        RecipeError, HubUnreachableError: a frozen encoder that cannot be loaded.
    """
    lower_case = texts.puts_into_lower_case(recipe.denoiser.kind)
    if recipe.text.kind == "pretrained":
        return texts.build(recipe.text, [], recipe.seed + 1, lower_case=lower_case)
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    assert recipe.text.hidden_size is not None  # the recipe's own rule
    return TextTower(
        AutoTokenizer.from_pretrained(folder / FOLDER),
        AutoModel.from_config(AutoConfig.from_pretrained(folder / FOLDER)),
        True,
        recipe.text.hidden_size,
        Padding.of(recipe.text),
        lower_case=lower_case,
    )
