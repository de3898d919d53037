"""Finished models of every kind that is exported, tiny and made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_autoencoders
import torch
from torch import Tensor

from daybreak_trainer.models import autoencoder, text_to_image
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe import Recipe, resolve

WORDS = ["a", "blue", "circle", "red", "square"]
KINDS = ("prx-pixel-x", "prx-pixel-v", "prx-kl", "prx-dc", "sana-pixel", "sana-dc")


def recipe_of(kind: str, folder: Path, **more: Any) -> Recipe:
    """One of `KINDS`; an autoencoder is written to `folder`."""
    family, space = kind.split("-", 1)
    changes: dict[str, Any] = {
        "preset": "smoke",
        "denoiser": {"kind": family, "depth": 2},
        "objective": {"prediction": "x" if kind == "prx-pixel-x" else "v"},
        "stages": [{"resolution": 32, "steps": 1, "batchSize": 1}],
        "sampling": {"steps": 5, "guidance": 2.5, "shift": 2.0},
        **more,
    }
    if space in ("kl", "dc"):
        save = {"kl": tiny_autoencoders.save_kl, "dc": tiny_autoencoders.save_dc}[space]
        changes["latent"] = {
            "autoencoder": str(save(folder)),
            "channels": tiny_autoencoders.CHANNELS,
            "downsampling": 4,
        }
        changes["denoiser"]["patchSize"] = 1
    return resolve(changes)


def trained(recipe: Recipe) -> tuple[dict[str, Tensor], TextTower, Autoencoder | None]:
    """Weights as after some training (an output of zero would hide everything), and what else an
    export needs."""
    model, tower = text_to_image.build(recipe, WORDS)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in model.named_parameters()
    }
    latent = recipe.latent
    return weights, tower, None if latent is None else autoencoder.build(latent)
