"""Teachers: any vision transformer becomes features of patches, in the grid that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from daybreak_trainer.objectives import teachers
from daybreak_trainer.recipe import RecipeError

CPU = torch.device("cpu")
FIELD = "recipe.objective.alignment.teacher"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
}
MADE = {
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL)),
    "class token, fixed places": lambda: ViTModel(ViTConfig(**SMALL)),
    "half of a pair": lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)),
    "no class token": lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL)),
}


def saved(model: Any, folder: Path, **preprocessor: Any) -> str:
    model.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


@pytest.mark.parametrize("kind", MADE)
def test_any_vision_transformer_sees_any_grid(kind: str, tmp_path: Path) -> None:
    """Whatever stands in front of the patches' tokens, and at sizes it was not trained on; nothing
    of it is trained, and it sees nothing but the image it is shown."""
    teacher = teachers.load(FIELD, saved(MADE[kind](), tmp_path), CPU)
    images = torch.rand(2, 3, 24, 40, requires_grad=True)
    seen = teacher.features(images, (3, 5))
    assert seen.shape == (2, 15, 16)
    assert teacher.width == 16
    assert seen.dtype == torch.float32
    seen.sum().backward()
    assert images.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_tokens_are_in_the_order_of_the_patches(tmp_path: Path) -> None:
    """Row by row: without attention between them, a bright patch shows at its own place."""
    model = MADE["registers"]()
    for layer in model.encoder.layer:
        torch.nn.init.zeros_(layer.attention.output.dense.weight)
        torch.nn.init.zeros_(layer.attention.output.dense.bias)
    teacher = teachers.load(FIELD, saved(model, tmp_path), CPU)
    dark = torch.zeros(1, 3, 8, 12)
    bright = dark.clone()
    bright[:, :, 4:, 4:8] = 1.0  # second row, second column of 2 x 3
    apart = (teacher.features(bright, (2, 3)) - teacher.features(dark, (2, 3))).abs().sum(dim=2)
    assert apart[0].argmax() == 4


def test_images_are_normalised_as_the_preprocessor_says(tmp_path: Path) -> None:
    """ImageNet's mean and deviation where it says nothing."""
    half = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    said = teachers.load(FIELD, saved(MADE["registers"](), tmp_path / "a", **half), CPU)
    assert said.mean.flatten().tolist() == pytest.approx(half["image_mean"])
    assert said.std.flatten().tolist() == pytest.approx(half["image_std"])
    silent = teachers.load(FIELD, saved(MADE["registers"](), tmp_path / "b"), CPU)
    assert silent.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_what_is_no_vision_transformer_is_refused_by_field_and_name(tmp_path: Path) -> None:
    """A folder that is not there, and a network without patches."""
    with pytest.raises(RecipeError, match=rf"{FIELD}: cannot load .*nowhere"):
        teachers.load(FIELD, str(tmp_path / "nowhere"), CPU)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    with pytest.raises(RecipeError, match="a vision transformer is needed"):
        teachers.load(FIELD, saved(ResNetModel(config), tmp_path / "resnet"), CPU)
