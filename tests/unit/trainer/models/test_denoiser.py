"""The denoiser computes what diffusers' own does, which is what its export runs with."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from torch import Tensor, nn

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.recipe import resolve

RECIPE = resolve({"preset": "smoke"}).denoiser
TEXT_TOKENS, TEXT_WIDTH = 7, 24


def outputs(model: nn.Module, masked: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The image that the model puts out for fixed inputs, and all gradients."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    images = model(
        hidden_states=torch.randn(2, 3, 16, 32, generator=generator),
        timestep=torch.tensor([0.2, 0.9]),
        encoder_hidden_states=torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator),
        attention_mask=mask if masked else None,
        return_dict=False,
    )[0]
    images.square().sum().backward()
    return images.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_the_stock_models(masked: bool) -> None:
    """With padded captions and without, images of two sides: image and gradients to the bit."""
    ours = denoisers.build(RECIPE, TEXT_WIDTH, seed=0)
    for parameter in ours.parameters():  # zero-initialised layers would hide everything
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    stock = PRXTransformer2DModel.from_config(dict(ours.config))
    stock.load_state_dict(ours.state_dict())
    (image, gradients), (expected, expected_gradients) = (
        outputs(model, masked) for model in (ours, stock)
    )
    assert torch.equal(image, expected)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name


def test_padding_changes_nothing() -> None:
    """What stands in padded tokens reaches no pixel."""
    model = denoisers.build(RECIPE, TEXT_WIDTH, seed=0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False]])
    text = torch.randn(1, 3, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    drawn = []
    for filling in (0.0, 50.0):
        text[:, 2] = filling
        with torch.no_grad():
            drawn.append(model(images, torch.tensor([0.5]), text, attention_mask=mask)[0])
    assert torch.equal(*drawn)
