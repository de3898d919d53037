"""Tiny models of both families, whose weights all matter, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daybreak_trainer.models import auxiliary
from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.recipe import Recipe, resolve

TEXT_TOKENS, TEXT_WIDTH, TEACHER_WIDTH = 7, 24, 12
LATENT = {"autoencoder": "somewhere", "channels": 4, "downsampling": 4}


def recipe_of(kind: str = "prx", depth: int = 3, **more: Any) -> Recipe:
    denoiser = {"kind": kind, "depth": depth, **more.pop("denoiser", {})}
    if kind == "sana" or more.get("latent"):  # of which diffusers draws the velocity alone
        more["objective"] = {"prediction": "v", **more.get("objective", {})}
    if kind == "sana" and more.get("latent"):
        more.setdefault("stages", [{"resolution": 32, "steps": 1, "batchSize": 1}])
    return resolve({"preset": "smoke", "denoiser": denoiser, **more})


def fresh(recipe: Recipe) -> TextToImage:
    """As training starts, its text encoder elsewhere."""
    denoiser = denoisers.build(recipe, TEXT_WIDTH)
    return TextToImage(denoiser, None, auxiliary.build(recipe, TEACHER_WIDTH))


def stirred(recipe: Recipe) -> TextToImage:
    """As after some training: zero-initialised layers would hide everything."""
    model = fresh(recipe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@dataclass(frozen=True)
class Inputs:
    noised: Tensor
    timesteps: Tensor
    mask: Tensor
    text: Tensor
    scores: Tensor

    def of(self, model: nn.Module, **more: Any) -> Any:
        return model(self.noised, self.timesteps, self.mask, text=self.text, **more)


def inputs(recipe: Recipe, height: int = 16, width: int = 32, seed: int = 3) -> Inputs:
    """Two samples of `height` × `width` places, the first with a shorter caption."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    patch = recipe.denoiser.patch_size
    return Inputs(
        torch.randn(2, denoisers.channels(recipe), height, width, generator=generator),
        torch.tensor([0.2, 0.9]),
        mask,
        torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        torch.rand(2, (height // patch) * (width // patch), generator=generator),
    )
