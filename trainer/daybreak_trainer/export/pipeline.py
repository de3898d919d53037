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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models.autoencoder import Autoencoder
from daybreak_trainer.models.pretrained import placed
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.recipe import Recipe, RecipeError

RECIPE_FILE = "recipe.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CPU = torch.device("cpu")


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
    *,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The pipeline with `weights` (names of `TextToImage`) on a device, in a precision. They are
    taken one after the other, each once, straight into its own, so a mapping may make them as they
    are asked for. A frozen encoder and the autoencoder are not copied: they become the pipeline's,
    and go where that goes.

    Raises:
        KeyError: a weight of the model is missing.
    """
    import diffusers

    encoder = _encoder(tower, device, dtype)
    of_denoiser = _but_the_encoders(weights, encoder if tower.trained else None)
    tokenizer = copy.deepcopy(tower.tokenizer)
    tokenizer.model_max_length = recipe.text.max_tokens  # to which the pipelines cut and pad
    parts: dict[str, Any] = {
        "transformer": denoisers.stock(recipe, tower.hidden_size, of_denoiser, device, dtype),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=recipe.sampling.shift),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
    }
    vae = None if autoencoder is None else autoencoder.module.to(device, dtype)
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


def _encoder(tower: TextTower, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A frozen encoder itself, for it may be larger than the denoiser; of a trained one the same
    without its weights. Both are as transformers would load them from the export: diffusers casts
    buffers of its own models, transformers does not."""
    encoder: nn.Module = tower.encoder
    if tower.trained:
        from transformers import AutoModel

        config: Any = tower.encoder.config
        encoder = AutoModel.from_config(config).eval()
    placed(encoder, device, dtype)
    return encoder


@torch.no_grad()
def _but_the_encoders(
    weights: Mapping[str, Tensor], encoder: nn.Module | None
) -> Iterator[tuple[str, Tensor]]:
    """The denoiser's, by their names there; those of the text encoder are filled in on the way, and
    what is trained beside the model stays behind."""
    # By parameter: a state dict would list tied weights twice.
    missing = {} if encoder is None else dict(encoder.named_parameters())
    for name, value in weights.items():
        part, _, rest = name.partition(".")
        if part == "denoiser":
            yield rest, value
        elif part == "text_encoder":
            missing.pop(rest).copy_(value)
    if missing:
        raise KeyError(f"text_encoder.{next(iter(missing))}")


def save_folder(pipeline: Any, recipe: Recipe, folder: Path) -> None:
    """Writes the pipeline as safetensors in the precision that it has, and the recipe it was made
    with."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / RECIPE_FILE).write_text(
        json.dumps(json.loads(recipe.to_json()), indent=2, sort_keys=True) + "\n"
    )


def scratch_folder(work_dir: Path) -> Path:
    """A fresh local folder; the caller removes it with `drop`."""
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="export-", dir=work_dir))


def drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


class Gathered(Mapping[str, Tensor]):
    """Full tensors of sharded ones, each gathered when it is asked for, on the device where its
    shards are: a collective, so all ranks ask for the same ones in the same order. Nothing is
    kept."""

    def __init__(self, shards: Mapping[str, Tensor]) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        value = self._shards[name].detach()
        return value.full_tensor() if isinstance(value, DTensor) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def pass_by(self) -> None:
        """Takes part for a rank that needs none of them."""
        for _ in self.values():
            pass
