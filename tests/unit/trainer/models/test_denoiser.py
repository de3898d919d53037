"""The denoiser computes what diffusers' own does, which is what its export runs with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import LATENT, TEXT_WIDTH, Inputs, fresh, inputs, recipe_of, stirred
from torch import Tensor, nn

from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models.rope import places, stretches
from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.recipe import Recipe

STAGES = [{"resolution": side, "steps": 1, "batchSize": 1} for side in (16, 32)]
PRX_LATENT = {"latent": LATENT, "denoiser": {"patchSize": 2, "bottleneckSize": 6}}
RECIPES = {
    "prx": recipe_of(),
    "prx latent": recipe_of(**PRX_LATENT),
    "prx shared": recipe_of(denoiser={"sharedModulation": True}),
    "prx last stage": recipe_of(denoiser={"ropeRange": "last-stage"}, stages=STAGES),
    "sana": recipe_of("sana"),
    "sana latent": recipe_of("sana", latent=LATENT, denoiser={"patchSize": 1}),
}


def stock_image(kind: str, stock: nn.Module, given: Inputs) -> Tensor:
    """As `PRXPipeline`, `PRXPixelPipeline` and `SanaPipeline` call their transformers: Sana sees
    the scheduler's timesteps, a thousand times t."""
    image: Tensor
    if kind == "prx":
        image = stock(
            given.noised, given.timesteps, given.text, attention_mask=given.mask, return_dict=False
        )[0]
    else:
        image = stock(
            given.noised,
            encoder_hidden_states=given.text,
            encoder_attention_mask=given.mask,
            timestep=given.timesteps * 1000,
            return_dict=False,
        )[0]
    return image


def gradients(image: Tensor, model: nn.Module) -> dict[str, Tensor]:
    image.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_denoiser_is_the_stock_model(recipe: Recipe) -> None:
    """With padded captions and images of two sides: the image, and the gradients of all weights
    that stock diffusers has by the same name; a shared modulation is spelled out for it."""
    model = stirred(recipe)
    weights = model.denoiser.named_parameters()
    stock = denoisers.stock(recipe, TEXT_WIDTH, weights, torch.device("cpu"), torch.float32)
    assert type(stock).__module__.startswith("diffusers.")
    # 32 x 32 pixels' worth of tokens, half as high and twice as wide: a bucket of the last stage.
    given = inputs(recipe, height=16, width=64)
    image = given.of(model).output
    expected = stock_image(recipe.denoiser.kind, stock, given)
    torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-6)
    mine, theirs = gradients(image, model.denoiser), gradients(expected, stock)  # type: ignore[arg-type]
    for name, gradient in mine.items():
        if "modulation" not in name or not recipe.denoiser.shared_modulation:
            apart = float((gradient - theirs[name]).norm())
            assert apart <= 1e-5 * float(gradient.norm()), name


@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_padding_changes_nothing(kind: str) -> None:
    """However much of it there is, and whatever stands in it."""
    recipe = recipe_of(kind)
    model, given, drawn = stirred(recipe), inputs(recipe), []
    for padding, filling in ((0, 0.0), (40, 0.0), (1, 50.0)):
        padded = torch.cat((given.text, torch.full((2, padding, 24), filling)), dim=1)
        mask = torch.cat((given.mask, torch.zeros(2, padding, dtype=torch.bool)), dim=1)
        with torch.no_grad():
            drawn.append(replace(given, text=padded, mask=mask).of(model).output)
    for other in drawn[1:]:
        torch.testing.assert_close(drawn[0], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["prx", "prx shared", "sana"])
@pytest.mark.parametrize("start", ["standard", "depth-scaled", "mup"])
@pytest.mark.parametrize("zeros", ["all", "gates"])
def test_blocks_start_as_the_identity_and_the_output_as_zero(
    kind: str, start: str, zeros: str
) -> None:
    """Whatever weights start from; with the gates alone at zero, shift and scale are not."""
    shared = {"sharedModulation": True} if kind == "prx shared" else {}
    changes = {"initialisation": start, "zeroModulation": zeros, **shared}
    recipe = recipe_of(kind.removesuffix(" shared"), denoiser=changes)
    model, given = fresh(recipe), inputs(recipe)
    denoiser = model.denoiser
    tokens, context = denoiser.enter(given.noised, given.timesteps, given.text, given.mask)
    for number in range(recipe.denoiser.depth):
        assert torch.equal(denoiser.through(number, tokens, context), tokens)
    assert not given.of(model).output.any()
    parameters = dict(denoiser.named_parameters())
    linear = {
        "prx": "blocks.0.modulation.lin.weight",
        "prx shared": "shared_modulation.weight",
        "sana": "time_embed.linear.weight",
    }[kind]
    moved = [bool(part.any()) for part in parameters[linear].chunk(6)]
    assert moved == ([False] * 6 if zeros == "all" else [True, True, False] * 2)


def weight(model: TextToImage, name: str) -> Tensor:
    return dict(model.denoiser.named_parameters())[name].detach()


@pytest.mark.parametrize(
    ("kind", "outer"),
    [("prx", "blocks.{}.down_proj.weight"), ("sana", "transformer_blocks.{}.ff.conv_point.weight")],
)
def test_depth_scaled_blocks_add_less_the_deeper_they_are(kind: str, outer: str) -> None:
    """By the root of twice their number from one; the rest starts as ever."""
    plain, scaled = (
        fresh(recipe_of(kind, denoiser={"initialisation": start}))
        for start in ("standard", "depth-scaled")
    )
    for number in range(3):
        ratio = weight(plain, outer.format(number)) / weight(scaled, outer.format(number))
        torch.testing.assert_close(ratio, torch.full_like(ratio, (2 * (number + 1)) ** 0.5))
    changed = [
        name
        for name, parameter in plain.denoiser.named_parameters()
        if not torch.equal(parameter, weight(scaled, name))
    ]
    assert len(changed) == 2 * 3


@pytest.mark.parametrize(
    ("kind", "hidden", "entry"),
    [
        ("prx", "blocks.0.gate_proj.weight", "img_in.weight"),
        ("sana", "transformer_blocks.0.ff.conv_inverted.weight", "patch_embed.proj.weight"),
    ],
)
def test_mup_draws_by_fan_in_and_slows_down_what_is_wide(
    kind: str, hidden: str, entry: str
) -> None:
    """Variance 1 / fan-in everywhere; matrices between hidden states at 256 / width of the rate,
    those from pixels, biases and gains at the rate itself."""
    for width in (64, 512):
        denoiser: dict[str, Any] = {"initialisation": "mup", "hiddenSize": width}
        model = fresh(recipe_of(kind, depth=1, denoiser=denoiser))
        factors = model.learning_rate_factors()
        assert factors[f"denoiser.{hidden}"] == 256 / width
        assert f"denoiser.{entry}" not in factors
        assert set(factors.values()) == {256 / width}
        assert set(factors) < {name for name, p in model.named_parameters() if p.ndim > 1}
        for name in (hidden, entry):
            drawn = weight(model, name)
            assert float(drawn.var() * drawn[0].numel()) == pytest.approx(1.0, rel=0.1)
    assert fresh(recipe_of(kind, depth=1)).learning_rate_factors() == {}


def test_a_place_keeps_its_coordinates_when_the_resolution_rises() -> None:
    """A bucket of 4 x 2 tokens at 16 px is one of 8 x 4 at 32 px: each of its tokens lies in the
    middle of the four that it becomes."""
    assert stretches([16, 24, 32]) == [2.0, 32 / 24, 1.0]
    fine = places((8, 4), 1.0, torch.device("cpu")).reshape(4, 2, 2, 2, 2)
    coarse = places((4, 2), 2.0, torch.device("cpu")).reshape(4, 2, 2)
    torch.testing.assert_close(fine.mean(dim=(1, 3)), coarse)
    assert torch.equal(fine.reshape(-1, 2)[:5, 1], torch.tensor([0.0, 1, 2, 3, 0]))


def test_coordinates_are_those_of_the_stage_that_was_entered() -> None:
    """Not of the number of tokens: the same bucket has others in another stage. A model as built is
    in the last stage, whose coordinates stock diffusers has."""
    recipe = RECIPES["prx last stage"]
    model, given = stirred(recipe), inputs(recipe)
    with torch.no_grad():
        built = given.of(model).output
        model.enter(recipe, 0)
        assert not torch.allclose(given.of(model).output, built, atol=1e-3)
        model.enter(recipe, 1)
        assert torch.equal(given.of(model).output, built)


@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_muon_gets_the_matrices_between_hidden_states(kind: str) -> None:
    """In parts where several are one parameter; no modulation, embedding, or projection out."""
    model = fresh(recipe_of(kind, depth=1))
    found = {name.removeprefix("denoiser."): n for name, n in model.block_matrices().items()}
    if kind == "prx":
        block = "blocks.0."
        expected = {
            "attention.img_qkv_proj": 3,
            "attention.txt_kv_proj": 2,
            "attention.to_out.0": 1,
        }
        expected |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), 1)
    else:
        block = "transformer_blocks.0."
        layers = ("to_q", "to_k", "to_v", "to_out.0")
        expected = {f"{a}.{layer}": 1 for a in ("attn1", "attn2") for layer in layers}
        expected |= {"ff.conv_inverted": 2, "ff.conv_point": 1}
    assert found == {f"{block}{name}.weight": number for name, number in expected.items()}
