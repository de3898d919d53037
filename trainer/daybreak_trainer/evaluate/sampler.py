"""Draws images from an exported pipeline, a batch at a time.

diffusers' pipelines are quickest when they draw many prompts at once; this sampler uses their text
encoder, scheduler, transformer and autoencoder, and nothing of the trainer. With fp32 weights it
draws what they draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from daybreak_trainer.evaluate import stock
from daybreak_trainer.evaluate.batches import Images, decoded, rows_at_once
from daybreak_trainer.evaluate.euler import guided, integrate, velocity
from daybreak_trainer.evaluate.stock import Stock


def noise_seed(seed: int, number: int) -> int:
    """Seeds the torch generator (on the CPU) of an image's noise."""
    return seed * 1_000_003 + number


def sample(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    negative: str = "",
    numbers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """One image a prompt, `(len(prompts), height, width, 3)`.

    An image's noise comes from (seed, its number), by default its place in `prompts`: the split
    into batches or over ranks changes nothing but rounding. With a `guidance` of 1 the `negative`
    prompt has no part.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    drawn_from = stock.of(pipeline)
    rows = rows_at_once(drawn_from.tokens)
    images = []
    for start in range(0, len(prompts), rows):
        chunk = list(prompts[start : start + rows])
        noise = torch.stack(
            [
                torch.randn(
                    drawn_from.shape,
                    generator=torch.Generator().manual_seed(noise_seed(seed, number)),
                )
                for number in numbers[start : start + rows]
            ]
        )
        images.append(_draw(drawn_from, chunk, negative, noise, steps, guidance))
        if progress is not None:
            progress(start + len(chunk), len(prompts))
    return np.concatenate(images)


@torch.inference_mode()
def _draw(
    drawn_from: Stock,
    prompts: list[str],
    negative: str,
    noise: torch.Tensor,
    steps: int,
    guidance: float,
) -> Images:
    """Euler steps on the velocity, with classifier-free guidance on the network's output."""
    with_guidance = guidance > 1.0
    text = drawn_from.encode(prompts, negative, with_guidance)

    def field(x: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
        doubled = torch.cat([x, x]) if with_guidance else x
        output = drawn_from.output(doubled, moment, text)
        if with_guidance:
            output = guided(output, guidance)
        return velocity(drawn_from.prediction, output, x, moment)

    start = (noise * drawn_from.noise_scale).to(drawn_from.device)
    data = integrate(field, start, drawn_from.pipeline.scheduler, steps)
    return decoded(data, drawn_from.images)
