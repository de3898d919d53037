"""The finished model as a `PRXPixelPipeline` folder, which stock diffusers loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak_trainer.models import text_to_image
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe import Recipe

RECIPE_FILE = "recipe.json"


def build_pipeline(
    recipe: Recipe, vocabulary: list[str], weights: dict[str, Tensor], tower: TextTower
) -> object:
    """A `PRXPixelPipeline` with `weights` (names of `TextToImage`), on the CPU, in fp32."""
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPixelPipeline

    model, fresh_tower = text_to_image.build(recipe, vocabulary)
    # By parameter: a state dict would list the encoder's tied embedding twice.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    encoder: nn.Module = model.text_encoder if model.text_encoder is not None else tower.encoder
    return PRXPixelPipeline(
        transformer=model.denoiser.to_stock(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=recipe.sampling.shift),
        text_encoder=encoder.eval(),
        tokenizer=fresh_tower.tokenizer,
        default_sample_size=recipe.stages[-1].resolution,
        prompt_max_tokens=recipe.text.max_tokens,
        noise_scale=recipe.objective.noise_scale,
    )


def save_folder(pipeline: object, recipe: Recipe, folder: Path) -> None:
    """Writes the pipeline and the recipe it was made with."""
    pipeline.save_pretrained(folder, safe_serialization=True)  # type: ignore[attr-defined]
    (folder / RECIPE_FILE).write_text(
        json.dumps(json.loads(recipe.to_json()), indent=2, sort_keys=True) + "\n"
    )


def scratch_folder(work_dir: Path) -> Path:
    """A fresh local folder; the caller removes it with `drop`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="export-", dir=work_dir))


def drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def gathered(shadow: dict[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors on the CPU from sharded ones; a collective, every rank gets them."""
    from torch.distributed.tensor import DTensor

    full = {}
    for name, value in shadow.items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        full[name] = tensor.detach().to("cpu", torch.float32)
    return full
