"""Draws images from an exported pipeline, a batch at a time.

`PRXPixelPipeline` is quickest when it draws many prompts at once; this
sampler uses its encoder, scheduler and transformer, and nothing of the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Images = npt.NDArray[np.uint8]
_BATCH = 32


def sample(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Images:
    """One image a prompt, `(len(prompts), height, width, 3)`.

    An image's noise comes from (seed, its number), by default its place in `prompts`: the split
    into batches or over ranks changes nothing but rounding.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    size, channels = pipeline.config.default_sample_size, pipeline.transformer.config.in_channels
    images = []
    for start in range(0, len(prompts), _BATCH):
        chunk = list(prompts[start : start + _BATCH])
        noise = torch.stack(
            [
                torch.randn(
                    (channels, size, size),
                    generator=torch.Generator().manual_seed(seed * 1_000_003 + number),
                )
                for number in numbers[start : start + _BATCH]
            ]
        )
        images.append(_draw(pipeline, chunk, noise * pipeline.config.noise_scale, steps, guidance))
        if progress is not None:
            progress(start + len(chunk), len(prompts))
    return np.concatenate(images)


@torch.inference_mode()
def _draw(
    pipeline: Any, prompts: list[str], latents: torch.Tensor, steps: int, guidance: float
) -> Images:
    """Euler steps on the velocity, with classifier-free guidance on the predicted image."""
    device = next(pipeline.transformer.parameters()).device
    text, mask, no_text, no_mask = pipeline.encode_prompt(prompts, device, guidance > 1.0)
    if guidance > 1.0:
        text, mask = torch.cat([no_text, text]), torch.cat([no_mask, mask])
    latents = latents.to(device)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps, device=device)
    for t in scheduler.timesteps:
        doubled = torch.cat([latents, latents]) if guidance > 1.0 else latents
        moment = (t.float() / scheduler.config.num_train_timesteps).to(device)
        clean = pipeline.transformer(
            hidden_states=doubled,
            timestep=moment.expand(len(doubled)),
            encoder_hidden_states=text,
            attention_mask=mask,
            return_dict=False,
        )[0]
        if guidance > 1.0:
            without, with_text = clean.chunk(2)
            clean = without + guidance * (with_text - without)
        velocity = (latents - clean) / moment.clamp_min(0.05)
        latents = scheduler.step(velocity, t, latents).prev_sample
    pixels = ((latents.clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
