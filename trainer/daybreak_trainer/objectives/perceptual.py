"""Distances that a vision model sees between the predicted and the clean image (PRX)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from daybreak_trainer.objectives import flow, lpips, teachers
from daybreak_trainer.objectives.lpips import Lpips
from daybreak_trainer.objectives.teachers import Teacher
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.recipe.objective import Perceptual


class Distance(Protocol):
    def __call__(self, found: Tensor, wanted: Tensor, /) -> Tensor:
        """Of each pair of images `(batch, 3, height, width)` in -1..1, `(batch,)`, fp32."""


@dataclass(frozen=True, eq=False)
class FeatureDistance:
    """Mean over patches of 1 - cosine between a vision transformer's features."""

    teacher: Teacher
    size: int
    """Side of the square to which images are resized, in pixels."""

    def __call__(self, found: Tensor, wanted: Tensor, /) -> Tensor:
        side = self.size // self.teacher.patch_size
        with torch.no_grad():
            targets = self.teacher.features(wanted, (side, side))
        seen = self.teacher.features(found, (side, side))
        return 1.0 - F.cosine_similarity(seen, targets, dim=2).mean(dim=1)


@dataclass(frozen=True, eq=False)
class LpipsDistance:
    network: Lpips
    size: int | None
    """Side of the square to which images are resized, in pixels; None for half of each side."""

    def __call__(self, found: Tensor, wanted: Tensor, /) -> Tensor:
        height, width = wanted.shape[2:]
        size = (height // 2, width // 2) if self.size is None else (self.size, self.size)
        one, other = (
            F.interpolate(images, size, mode="bilinear", antialias=True)
            for images in (found, wanted)
        )
        distance: Tensor = self.network(one, other)
        return distance


def load(
    field: str, recipe: Perceptual, device: torch.device, known: dict[str, Teacher]
) -> Distance:
    """The distance of `recipe`, which stands in the recipe's `field`. `known` are transformers
    that are on the device already, by their source; another one is added.

    Raises:
        RecipeError: what it names cannot be loaded, or its size does not fit.
        HubUnreachableError: a repository does not answer.
    """
    if recipe.kind == "lpips":
        return LpipsDistance(lpips.load(f"{field}.teacher", recipe.teacher, device), recipe.size)
    teacher = known.get(recipe.teacher)
    if teacher is None:
        teacher = known[recipe.teacher] = teachers.load(f"{field}.teacher", recipe.teacher, device)
    size = recipe.size or teacher.image_size
    if size % teacher.patch_size:
        raise RecipeError(
            f"{field}.size ({size}) must be a multiple of {teacher.patch_size}, the patches of "
            f"{recipe.teacher}; set it to {size - size % teacher.patch_size or teacher.patch_size}"
        )
    return FeatureDistance(teacher, size)


def loss_per_sample(
    distance: Distance,
    output: Tensor,
    clean: Tensor,
    timesteps: Tensor,
    max_timestep: float,
    kept: Tensor | None = None,
) -> Tensor:
    """The distance of each sample, `(batch,)`, zero where its timestep is above `max_timestep`.

    `output` is the predicted image. All samples go through the network, whether they count or not:
    shapes stay, and no rank waits. What was dropped of an image is filled from the clean one.
    """
    found = output.float()
    if kept is not None:
        found = torch.where(flow.over_patches(kept, *clean.shape[2:]), found, clean)
    return torch.where(timesteps <= max_timestep, distance(found, clean), 0.0)
