"""Draws images from the model that is being trained, sharded as it is.

The same steps as an export's (`sampler`): Euler on the velocity, classifier-free guidance, the
scheduler's timesteps, and noise from (seed, the image's number). So a grid drawn at the last step
is what the export draws, but for the rounding of the training's precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from daybreak_trainer.evaluate.batches import Images, decoded, rows_at_once
from daybreak_trainer.evaluate.euler import guided, integrate, velocity
from daybreak_trainer.evaluate.sampler import noise_seed
from daybreak_trainer.models.text import Conditioner
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.recipe import Recipe


@dataclass(frozen=True)
class Drawer:
    recipe: Recipe
    model: nn.Module
    text: Conditioner
    rank: Rank
    dtype: torch.dtype
    """That the model computes in."""
    rows: int
    """Most images at once, fewer of large ones; guidance doubles them."""
    decode: Callable[[Tensor], Tensor]
    """From what the model works on to images in -1..1; one at a time."""

    def together(
        self,
        prompts: Sequence[str],
        size: tuple[int, int],
        seed: int,
        moved: Callable[[int], None],
    ) -> Images:
        """An image a prompt `(n, height, width, 3)`, on every rank; each draws its share."""
        world, rank = self.rank.world, self.rank.rank
        share = -(-len(prompts) // world)
        numbers = [min(rank + world * row, len(prompts) - 1) for row in range(share)]
        mine = self.draw([prompts[n] for n in numbers], numbers, size, seed, moved)
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, mine)
        # Rank r drew images r, r + world, ...; what lies behind the last is padding.
        images: Images = np.stack(parts, axis=1).reshape(-1, *mine.shape[1:])
        return images[: len(prompts)]

    def draw(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        size: tuple[int, int],
        seed: int,
        moved: Callable[[int], None],
    ) -> Images:
        """This rank's images; all ranks call this together with equally many prompts. `moved` hears
        how many steps are done."""
        rows = rows_at_once(self.recipe.tokens(*size), self.rows)
        found = []
        for start in range(0, len(prompts), rows):
            end = start + rows
            noise = self._noise(numbers[start:end], size, seed)
            images = self._drawn(list(prompts[start:end]), noise, moved, start)
            found.append(images)
        return np.concatenate(found)

    def _noise(self, numbers: Sequence[int], size: tuple[int, int], seed: int) -> Tensor:
        latent = self.recipe.latent
        channels, shrunk = (3, 1) if latent is None else (latent.channels, latent.downsampling)
        shape = (channels, size[0] // shrunk, size[1] // shrunk)
        drawn = [
            torch.randn(shape, generator=torch.Generator().manual_seed(noise_seed(seed, number)))
            for number in numbers
        ]
        return self.recipe.objective.noise_scale * torch.stack(drawn)

    @torch.no_grad()
    def _drawn(
        self, prompts: list[str], noise: Tensor, moved: Callable[[int], None], before: int
    ) -> Images:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.recipe.sampling.shift)
        condition = self._condition(prompts)
        steps = count(before * self.recipe.sampling.steps + 1)

        def field(x: Tensor, moment: Tensor) -> Tensor:
            found = self._velocity(x, moment, condition)
            moved(next(steps))
            return found

        noise = noise.to(self.rank.device)
        x = integrate(field, noise, scheduler, self.recipe.sampling.steps)
        return decoded(x, self.decode)

    @property
    def _guided(self) -> bool:
        return self.recipe.sampling.guidance > 1.0

    def _condition(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the model is told, for the empty prompts first where there is guidance."""
        texts = [*([""] * len(prompts)), *prompts] if self._guided else prompts
        return self.text.condition(texts, self.rank.device, self.dtype)

    def _velocity(self, x: Tensor, moment: Tensor, condition: dict[str, Tensor]) -> Tensor:
        doubled = torch.cat([x, x]) if self._guided else x
        moments = moment.to(x.device).expand(len(doubled))
        output: Tensor = self.model(doubled.to(self.dtype), moments, **condition).output.float()
        if self._guided:
            output = guided(output, self.recipe.sampling.guidance)
        return velocity(self.recipe.objective.prediction, output, x, moment)
