"""The finished model as a folder that stock diffusers loads, with none of our code.

| denoiser.kind | space  | prediction | pipeline                              |
|---------------|--------|------------|---------------------------------------|
| prx           | pixels | x          | `PRXPixelPipeline`                    |
| prx           | pixels | v          | `PRXPipeline` without an autoencoder  |
| prx           | latent | v          | `PRXPipeline`                         |
| sana          | pixels | v          | `SanaPipeline` without an autoencoder |
| sana          | latent | v          | `SanaPipeline`                        |

No pipeline turns a predicted latent into a velocity, so the recipe's rules refuse that.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe import Recipe, RecipeError

RECIPE_FILE = "recipe.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def check(recipe: Recipe, autoencoder: Autoencoder | None) -> None:
    """Raises RecipeError where stock diffusers could not draw with what is trained: what the recipe
    alone cannot tell."""
    if autoencoder is None or recipe.denoiser.kind != "sana":
        return
    if (kind := type(autoencoder.module).__name__) != "AutoencoderDC":
        raise RecipeError(
            f"recipe.latent.autoencoder is an {kind}, and diffusers' SanaPipeline decodes with an "
            "AutoencoderDC alone; take one of these, or denoiser.kind: prx"
        )


def build_pipeline(
    recipe: Recipe,
    weights: Mapping[str, Tensor],
    tower: TextTower,
    autoencoder: Autoencoder | None = None,
) -> Any:
    """The pipeline with `weights` (names of `TextToImage`), on the CPU, in fp32. A frozen encoder
    is not copied: the tower's own becomes the pipeline's, and goes where that goes.

    Raises:
        KeyError: a weight of the model is missing.
    """
    import diffusers

    denoiser = denoisers.build(recipe, tower.hidden_size)
    _fill(denoiser, weights, "denoiser.")
    tokenizer = copy.deepcopy(tower.tokenizer)
    tokenizer.model_max_length = recipe.text.max_tokens  # to which the pipelines cut and pad
    parts: dict[str, Any] = {
        "transformer": denoiser.to_stock(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=recipe.sampling.shift),
        "text_encoder": _encoder(tower, weights),
        "tokenizer": tokenizer,
    }
    vae = None if autoencoder is None else autoencoder.module
    if recipe.denoiser.kind == "sana":
        return diffusers.SanaPipeline(**parts, vae=vae)
    parts["default_sample_size"] = recipe.stages[-1].resolution
    if recipe.objective.prediction == "v":
        return diffusers.PRXPipeline(**parts, vae=vae)
    return diffusers.PRXPixelPipeline(
        **parts,
        prompt_max_tokens=recipe.text.max_tokens,
        noise_scale=recipe.objective.noise_scale,
    )


def _encoder(tower: TextTower, weights: Mapping[str, Tensor]) -> nn.Module:
    """A frozen encoder itself, which computes in bf16 on a GPU while training, for it may be larger
    than the denoiser; of a trained one a copy with its averaged weights."""
    if not tower.trained:
        return tower.encoder.to("cpu", torch.float32)
    from transformers import AutoModel

    config: Any = tower.encoder.config
    encoder: nn.Module = AutoModel.from_config(config)
    _fill(encoder, weights, "text_encoder.")
    return encoder.eval()


@torch.no_grad()
def _fill(module: Any, weights: Mapping[str, Tensor], prefix: str) -> None:
    # By parameter: a state dict would list tied weights twice.
    for name, parameter in module.named_parameters():
        parameter.copy_(weights[prefix + name])


def save_folder(pipeline: Any, recipe: Recipe, folder: Path, dtype: str = "fp32") -> None:
    """Writes the pipeline as safetensors of `dtype`, and the recipe it was made with; the pipeline
    has that type from then on."""
    pipeline.to(DTYPES[dtype]).save_pretrained(folder, safe_serialization=True)
    (folder / RECIPE_FILE).write_text(
        json.dumps(json.loads(recipe.to_json()), indent=2, sort_keys=True) + "\n"
    )


def scratch_folder(work_dir: Path) -> Path:
    """A fresh local folder; the caller removes it with `drop`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="export-", dir=work_dir))


def drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def gathered(shadow: Mapping[str, Tensor], kept: bool = True) -> dict[str, Tensor]:
    """Full tensors on the CPU from sharded ones; a collective. A rank that does not keep them has
    none, and no memory taken for them."""
    from torch.distributed.tensor import DTensor

    full = {}
    for name, value in shadow.items():
        tensor = value.full_tensor() if isinstance(value, DTensor) else value
        if kept:
            full[name] = tensor.detach().to("cpu", torch.float32)
    return full
