"""The denoiser computes what diffusers' own does, which is what its export runs with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models.family import Denoiser
from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.recipe import resolve

RECIPE = resolve({"preset": "smoke"})
TEXT_TOKENS, TEXT_WIDTH = 7, 24


def made() -> Denoiser:
    """With weights that all matter: zero-initialised layers would hide everything."""
    denoiser = denoisers.build(RECIPE, TEXT_WIDTH)
    for _, parameter in denoiser.named_parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return denoiser


def gradients(image: Tensor, model: nn.Module) -> dict[str, Tensor]:
    image.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_denoiser_is_the_stock_model() -> None:
    """With padded captions, images of two sides: image and gradients to the bit."""
    ours = made()
    stock = ours.to_stock()
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    noised, timesteps = torch.randn(2, 3, 16, 32, generator=generator), torch.tensor([0.2, 0.9])
    text = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator)
    image = TextToImage(ours, None)(noised, timesteps, mask, text=text).output
    expected = stock(noised, timesteps, text, attention_mask=mask, return_dict=False)[0]
    assert torch.equal(image, expected)
    mine, theirs = gradients(image, ours), gradients(expected, stock)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert torch.equal(gradient, theirs[name]), name


@pytest.mark.parametrize("filling", [0.0, 50.0])
def test_padding_changes_nothing(filling: float) -> None:
    """However much of it there is, and whatever stands in it: the image is the same."""
    model = TextToImage(made(), None)
    text = torch.randn(1, 2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    drawn = []
    for padding in (1, 40):
        padded = torch.cat((text, torch.full((1, padding, TEXT_WIDTH), filling)), dim=1)
        mask = torch.arange(padded.shape[1])[None] < text.shape[1]
        with torch.no_grad():
            drawn.append(model(images, torch.tensor([0.5]), mask, text=padded).output)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-6)
