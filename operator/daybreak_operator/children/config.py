"""The ConfigMap with the resolved recipe, and the headless Service that names the workers."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.children import names
from daybreak_operator.observation import FixedRecipe
from daybreak_trainer.contract import RECIPE_PATH


def config_map(run: TrainingRun, recipe: FixedRecipe) -> dict[str, Any]:
    """Named by the recipe's hash and immutable: every attempt trains the same recipe."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(run, names.config_name(run, recipe.hash)),
        "immutable": True,
        "data": {RECIPE_PATH.name: recipe.text},
    }


def service(run: TrainingRun) -> dict[str, Any]:
    """Headless, and naming pods before they are ready: ranks meet before they can be."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(run, names.service_name(run)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.labels(run),
        },
    }
