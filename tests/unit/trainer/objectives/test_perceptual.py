"""Perceptual losses: LPIPS as published, features of a transformer, and which samples count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import vgg16
from transformers import Dinov2Config, Dinov2Model

from daybreak_trainer.objectives import perceptual
from daybreak_trainer.objectives.perceptual import Distance
from daybreak_trainer.recipe import RecipeError
from daybreak_trainer.recipe.objective import Perceptual

CPU = torch.device("cpu")
FIELD = "recipe.objective.perceptual[0]"
CHANNELS = (64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, of random weights."""
    folder = tmp_path_factory.mktemp("lpips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = vgg16(weights=None).features.state_dict()
        lins = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(CHANNELS)}
    save_file({f"features.{k}": v for k, v in features.items()}, folder / "vgg16.safetensors")
    save_file(lins, folder / "lpips.safetensors")
    return folder


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformer")
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


def images(seed: int, side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def loaded(kind: str, teacher: Path, size: int | None = None) -> Distance:
    recipe = Perceptual(kind=kind, teacher=str(teacher), weight=0.1, size=size)  # type: ignore[arg-type]
    return perceptual.load(FIELD, recipe, CPU, {})


def test_lpips_is_the_published_one(calibrated: Path) -> None:
    """Section 3 and equation 1: unit features of five layers, squared difference, weighted by
    channel, mean over places; of images of half the size."""
    found, wanted = images(1), images(2)
    from safetensors.torch import load_file

    vgg = vgg16(weights=None).features.eval()
    vgg.load_state_dict(
        {
            name.removeprefix("features."): value
            for name, value in load_file(calibrated / "vgg16.safetensors").items()
        }
    )
    lins = load_file(calibrated / "lpips.safetensors")
    mean = torch.tensor([-0.030, -0.088, -0.188]).reshape(3, 1, 1)
    std = torch.tensor([0.458, 0.448, 0.450]).reshape(3, 1, 1)
    expected = torch.zeros(2)
    for number, end in enumerate((4, 9, 16, 23, 30)):
        one, other = (
            F.normalize(vgg[:end]((F.avg_pool2d(_blur(i), 1) - mean) / std), dim=1)
            for i in (found, wanted)
        )
        squared = (one - other).square() * lins[f"lin{number}.model.1.weight"]
        expected += squared.sum(dim=1).mean(dim=(1, 2)).detach()
    distance = loaded("lpips", calibrated)(found, wanted)
    torch.testing.assert_close(distance, expected, rtol=1e-3, atol=1e-6)


def _blur(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)


@pytest.mark.parametrize("kind", ["lpips", "features"])
def test_a_distance_is_zero_for_the_same_image_and_draws_the_prediction(
    kind: str, calibrated: Path, transformer: Path
) -> None:
    """Gradients come to the predicted image and to nothing else."""
    distance = loaded(kind, calibrated if kind == "lpips" else transformer)
    found, wanted = images(1).requires_grad_(), images(2).requires_grad_()
    torch.testing.assert_close(distance(wanted, wanted).detach(), torch.zeros(2), atol=1e-6, rtol=0)
    apart = distance(found, wanted)
    assert bool((apart > 1e-4).all())
    apart.sum().backward()
    assert found.grad is not None
    assert bool(found.grad.abs().sum() > 0)
    assert wanted.grad is None


def test_only_samples_with_little_noise_count(transformer: Path) -> None:
    """Each by its own timestep; what was dropped of an image is not compared."""
    distance = loaded("features", transformer)
    found, wanted, t = images(1), images(2), torch.tensor([0.2, 0.7])
    some = perceptual.loss_per_sample(distance, found, wanted, t, 0.5)
    every = perceptual.loss_per_sample(distance, found, wanted, t, 1.0)
    assert some[0] == every[0] > 0
    assert some[1] == 0 < every[1]
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    hidden = perceptual.loss_per_sample(distance, found, wanted, t, 1.0, nothing)
    torch.testing.assert_close(hidden, torch.zeros(2), atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused_by_field(
    tmp_path: Path, calibrated: Path, transformer: Path
) -> None:
    """Files that are not there, tensors that are missing, a size that patches do not divide."""
    with pytest.raises(RecipeError, match=r"perceptual\[0\]\.teacher: cannot load LPIPS"):
        loaded("lpips", tmp_path)
    (tmp_path / "vgg16.safetensors").symlink_to(calibrated / "vgg16.safetensors")
    save_file({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "lpips.safetensors")
    with pytest.raises(RecipeError, match=r"lin1\.model\.1\.weight is missing"):
        loaded("lpips", tmp_path)
    with pytest.raises(RecipeError, match=r"perceptual\[0\]\.size \(30\).*set it to 28"):
        loaded("features", transformer, size=30)
