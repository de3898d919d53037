"""The objective of a stage, put together: each part's loss for every sample, and their weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from daybreak_trainer.models import flops
from daybreak_trainer.models.tricks import Prediction
from daybreak_trainer.objectives import alignment, contrast, flow, perceptual, teachers
from daybreak_trainer.objectives.draws import Draws
from daybreak_trainer.objectives.perceptual import Distance
from daybreak_trainer.objectives.teachers import Teacher
from daybreak_trainer.recipe import Recipe
from daybreak_trainer.recipe.objective import Alignment, Objective, Perceptual


@dataclass(frozen=True, eq=False)
class Seers:
    """The frozen networks that an objective needs, on the device."""

    teacher: Teacher | None = None
    distances: tuple[tuple[Perceptual, Distance], ...] = ()

    @property
    def width(self) -> int | None:
        """Of the features that hidden states are aligned with."""
        return None if self.teacher is None else self.teacher.width

    def for_stages(self, recipe: Recipe, since: int, device: torch.device) -> Seers:
        """What the stages from `since` on need, for a large vision transformer in bf16 is 0.6 GB:
        of these what they need, and where that is not all (a roll-back led to an earlier stage)
        what `load` finds.

        Raises:
            As `load`.
        """
        aligned, parts = _needed(recipe, since)
        kept = tuple(pair for pair in self.distances if pair[0] in parts)
        if (aligned is not None and self.teacher is None) or len(kept) < len(parts):
            return load(recipe, device, since)
        return Seers(None if aligned is None else self.teacher, kept)


def load(recipe: Recipe, device: torch.device, since: int = 0) -> Seers:
    """What some stage of the recipe needs, from the stage `since` on, a teacher that two of them
    name once. At the start of an attempt that is all of them, for the shapes of all stages are
    rehearsed before the first step; stages that need them no longer let them go
    (`Seers.for_stages`).

    Raises:
        RecipeError: one cannot be loaded; the message names the field and the remedy.
        HubUnreachableError: a repository does not answer.
    """
    aligned, parts = _needed(recipe, since)
    known: dict[str, Teacher] = {}
    teacher = None
    if aligned is not None:
        field = "recipe.objective.alignment.teacher"
        teacher = known[aligned.teacher] = teachers.load(field, aligned.teacher, device)
    distances = tuple(
        (part, perceptual.load(f"recipe.objective.perceptual[{number}]", part, device, known))
        for number, part in enumerate(recipe.objective.perceptual)
        if part in parts
    )
    return Seers(teacher, distances)


def _needed(recipe: Recipe, since: int) -> tuple[Alignment | None, list[Perceptual]]:
    """What some stage from `since` on is aligned with, and the distances that one minimises."""
    stages = [recipe.objective.in_stage(stage) for stage in recipe.stages[since:]]
    aligned = next((stage.alignment for stage in stages if stage.alignment is not None), None)
    return aligned, [
        part
        for part in recipe.objective.perceptual
        if any(part in stage.perceptual for stage in stages)
    ]


@dataclass(frozen=True, eq=False)
class Sight:
    """A pass's samples, without noise."""

    clean: Tensor
    """What the denoiser learns: images in -1..1 or scaled latents, `(batch, channels, height,
    width)`."""
    images: Tensor | None
    """The images in -1..1; in pixel space the same tensor. None where no part looks at them."""
    counted: int
    """So many of them count, the first ones."""


class StageLosses:
    """The parts of a stage's objective: `flow`, and `contrast`, `alignment`, and each perceptual
    distance by its kind, where they are on."""

    def __init__(
        self, objective: Objective, seers: Seers, pixels_per_token: int, device: torch.device
    ) -> None:
        """`objective` is the stage's (`Objective.in_stage`)."""
        self._objective, self._seers, self._pixels = objective, seers, pixels_per_token
        weights = {"flow": 1.0}
        if objective.contrast:
            weights["contrast"] = -objective.contrast
        if objective.alignment is not None:
            weights["alignment"] = objective.alignment.weight
        self._distances = [pair for pair in seers.distances if pair[0] in objective.perceptual]
        kinds: Counter[str] = Counter()
        for part, _ in self._distances:
            kinds[part.kind] += 1
            number = f"_{kinds[part.kind]}" if kinds[part.kind] > 1 else ""
            weights[part.kind + number] = part.weight
        self.names = tuple(weights)
        self.weights = torch.tensor(list(weights.values()), device=device)
        """`(parts,)`: the loss is their weighted sum."""

    def per_sample(self, prediction: Prediction, sight: Sight, draws: Draws) -> Tensor:
        """Each part before its weight, `(parts, batch)`, fp32, in the order of `names`."""
        objective, kept = self._objective, prediction.kept
        clean, noise, t = sight.clean, draws.noise, draws.timesteps
        parts = [flow.loss_per_sample(objective, prediction.output, clean, noise, t, kept)]
        if objective.contrast:
            x_t = flow.noised(clean, noise, t)
            velocity = flow.velocity(objective, prediction.output.float(), x_t, t)
            parts.append(contrast.distance_per_sample(velocity, clean, noise, sight.counted, kept))
        if objective.alignment is not None:
            parts.append(self._alignment(prediction, sight))
        parts += [
            perceptual.loss_per_sample(
                distance, prediction.output, clean, t, part.max_timestep, kept
            )
            for part, distance in self._distances
        ]
        return torch.stack(parts)

    def flops(self, height: int, width: int) -> float:
        """Of the frozen networks, for one image of `height` × `width` pixels: a teacher looks once,
        a distance at two images, and its gradient comes back through one of them."""
        image = torch.zeros(1, 3, height, width, device=self.weights.device)
        total, teacher = 0.0, self._seers.teacher
        if self._objective.alignment is not None and teacher is not None:
            grid = (height // self._pixels, width // self._pixels)
            total += flops.counted(lambda: teacher.features(image, grid))
        for _, distance in self._distances:
            total += 1.5 * flops.counted(partial(distance, image, image))
        return total

    def _alignment(self, prediction: Prediction, sight: Sight) -> Tensor:
        recipe, teacher = self._objective.alignment, self._seers.teacher
        assert recipe is not None
        assert teacher is not None  # `load` was given the same objective
        assert sight.images is not None
        assert prediction.hidden is not None  # the stage's tricks capture it
        height, width = sight.images.shape[2:]
        grid = (height // self._pixels, width // self._pixels)
        wanted = alignment.targets(teacher, sight.images, grid, recipe.spatial_normalisation)
        return alignment.loss_per_sample(prediction.hidden, wanted, prediction.visible)
