"""What a run's attempts share: the ConfigMap with the resolved recipe, the headless Service that
names the workers, and the NetworkPolicy that keeps others away from them."""

from __future__ import annotations

from typing import Any

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.children import names
from daybreak_operator.observation import FixedRecipe
from daybreak_trainer.contract import HTTP_PORT, RECIPE_PATH


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


def network_policy(run: TrainingRun) -> dict[str, Any]:
    """Workers are reached by workers of their own run on every port, and by all on the port of
    metrics and progress, which tell no secrets; what they reach themselves is not limited."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(run, names.service_name(run)),
        "spec": {
            "podSelector": {"matchLabels": names.labels(run)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": names.labels(run)}}]},
                {"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]},
            ],
        },
    }
