"""Tokens that pass by blocks: what TREAD, SPRINT and deferred masking promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from small_networks import TEACHER_WIDTH, Inputs, fresh, inputs, recipe_of, stirred
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.models.tricks import Tricks, gather, visible_tokens
from daybreak_trainer.recipe import Recipe, RecipeError

STAGES = [
    {"resolution": 16, "steps": 1, "batchSize": 1},
    {"resolution": 16, "steps": 1, "batchSize": 1, "routing": False},
]
ALIGNMENT = {"teacher": "somewhere", "layer": 1, "weight": 0.5, "projectorSize": 20}


def with_trick(kind: str = "prx", depth: int = 3, **objective: Any) -> Recipe:
    return recipe_of(kind, depth, objective=objective, stages=STAGES)


def routed(kind: str, trick: str = "tread", share: float = 0.5, **objective: Any) -> Recipe:
    routing = {"kind": trick, "share": share, "first": 1, "last": 1}
    return with_trick(kind, routing=routing, **objective)


def masked(share: float = 0.75, **objective: Any) -> Recipe:
    return with_trick(masking={"share": share, "mixerDepth": 1}, **objective)


def of(recipe: Recipe) -> Tricks:
    return Tricks.of(recipe, recipe.stages[0])


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_smallest_scores_are_left_out() -> None:
    """In order, on ties too; never all, never none."""
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.5, 0.5, 0.5, 0.5]])
    assert visible_tokens(scores, 0.5).tolist() == [[0, 2], [2, 3]]
    assert visible_tokens(scores, 0.01).shape == (2, 3)
    assert visible_tokens(scores, 0.99).shape == (2, 1)


@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_without_scores_tread_is_the_plain_model(kind: str) -> None:
    """Evaluation routes nothing, to the bit; training does."""
    recipe = routed(kind)
    model, given = stirred(recipe), inputs(recipe)
    with torch.no_grad():
        plain = given.of(model).output
        assert torch.equal(given.of(model, tricks=of(recipe)).output, plain)
        trained = given.of(model, tricks=of(recipe), scores=given.scores).output
    assert not torch.allclose(trained, plain, atol=1e-2)


@pytest.mark.parametrize("kind", ["prx", "sana"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_with_zero_gates_tread_changes_no_token(kind: str, share: float) -> None:
    """Blocks that are the identity are so for tokens that pass by and for those that do not."""
    recipe = routed(kind, share=share)
    model, given = fresh(recipe), inputs(recipe)
    last = {"prx": "final_layer.linear", "sana": "proj_out"}[kind]
    nn.init.normal_(cast(nn.Module, model.denoiser).get_submodule(last).weight)
    with torch.no_grad():
        plain = given.of(model).output
        assert plain.any()
        assert torch.equal(given.of(model, tricks=of(recipe), scores=given.scores).output, plain)


@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_routed_tokens_pass_by_and_learn(kind: str) -> None:
    """A token that passes by is not seen by the block: its content reaches no other there. The loss
    at its own place has a gradient with respect to it all the same."""
    recipe = routed(kind, alignment={**ALIGNMENT, "layer": 1})
    model, given = stirred(recipe), inputs(recipe)
    tokens, _ = model.denoiser.enter(given.noised, given.timesteps, given.text, given.mask)
    found = given.of(model, tricks=of(recipe), scores=given.scores)
    visible = visible_tokens(given.scores, 0.5)
    assert torch.equal(found.visible, visible)
    assert found.hidden.shape == (2, visible.shape[1], TEACHER_WIDTH)
    assert tokens.shape[1] == 2 * visible.shape[1]
    given.noised.requires_grad_()
    out = given.of(model, tricks=of(recipe), scores=given.scores).output
    hidden = patches(torch.autograd.grad(out.square().sum(), given.noised)[0])
    assert (hidden.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize("trick", ["tread", "sprint"])
@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_computing_again_gives_the_same_gradients(kind: str, trick: str) -> None:
    """With activation checkpointing of every block, to the bit."""
    recipe = routed(kind, trick)
    model, given = stirred(recipe), inputs(recipe)

    def run() -> dict[str, Tensor]:
        out = given.of(model, tricks=of(recipe), scores=given.scores).output
        return gradients(model, out.square().sum())

    once = run()
    for unit in model.units:
        forward = unit.forward
        unit.forward = lambda *a, f=forward, **k: checkpoint(f, *a, use_reentrant=False, **k)  # type: ignore[method-assign,misc]
    again = run()
    assert once.keys() == again.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_sprint_without_dropping_is_a_linear_layer_of_both_paths(kind: str) -> None:
    """Linear([x, f(x)]) behind the last of the routed blocks, whose input was x."""
    recipe = routed(kind, "sprint")
    model, given = stirred(recipe), inputs(recipe)
    denoiser, linear = model.denoiser, model.aux["fusion"].linear
    with torch.no_grad():
        tokens, context = denoiser.enter(given.noised, given.timesteps, given.text, given.mask)
        shallow = denoiser.through(0, tokens, context)
        deep = denoiser.through(1, shallow, context)
        fused = torch.nn.functional.linear(
            torch.cat((shallow, deep), dim=2), linear.weight, linear.bias
        )
        expected = denoiser.leave(denoiser.through(2, fused, context), context)
        assert torch.equal(given.of(model, tricks=of(recipe)).output, expected)
        # In the last stage the fusion is gone: this is what is exported.
        later = Tricks.of(recipe, recipe.stages[1])
        assert torch.equal(given.of(model, tricks=later).output, given.of(model).output)
        assert not torch.equal(given.of(model).output, expected)
        # Weights are judged with what their stage trains.
        model.enter(recipe, 0)
        assert torch.equal(given.of(model).output, expected)


def test_sprint_puts_a_learned_token_in_place_of_those_it_dropped() -> None:
    """What a dropped token has behind the fusion comes from itself and the learned token."""
    recipe = routed("prx", "sprint", share=0.75)
    model, given = stirred(recipe), inputs(recipe)
    fusion = model.aux["fusion"]
    shallow = torch.randn(2, 6, 32)
    visible = torch.tensor([[1, 4], [0, 5]])
    with torch.no_grad():
        fused = fusion(shallow, gather(shallow, visible) + 1.0, visible)
        apart = fusion.linear(torch.cat((shallow, fusion.token.expand(2, 6, -1)), dim=2))
    dropped = torch.ones(2, 6, dtype=torch.bool).scatter(1, visible, value=False)
    torch.testing.assert_close(fused[dropped], apart[dropped])
    assert not torch.isclose(fused[~dropped], apart[~dropped]).all(dim=1).any()
    out = given.of(model, tricks=of(recipe), scores=given.scores).output
    assert gradients(model, out.sum())["aux.fusion.token"].any()


def patches(image: Tensor) -> Tensor:
    """`(batch, tokens, numbers)` in the order of the tokens, patches of 4 × 4."""
    return image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def masked_loss(found: Any, target: Tensor) -> Tensor:
    kept = torch.ones_like(target[:, :, 0]) if found.kept is None else found.kept.float()
    error = (patches(found.output) - target).square().mean(dim=2)
    return (error * kept).sum(dim=1) / kept.sum(dim=1)


def test_the_masked_loss_is_over_the_patches_that_are_kept() -> None:
    """Whatever the target is elsewhere. The mixer has seen all patches: the loss has a gradient
    with respect to those that were dropped."""
    recipe = masked()
    model, given = stirred(recipe), inputs(recipe)
    given.noised.requires_grad_()
    found = given.of(model, tricks=of(recipe), scores=given.scores)
    kept = found.kept
    assert kept.sum(dim=1).tolist() == [8, 8]
    target = torch.randn(2, 32, 48)
    loss = masked_loss(found, target)
    assert torch.equal(loss, masked_loss(found, torch.where(kept[:, :, None], target, 1e3)))
    assert not patches(found.output)[~kept].any()
    (gradient,) = torch.autograd.grad(loss.sum(), given.noised)
    assert (patches(gradient).abs().sum(dim=2) > 0).all()


def test_dropping_fewer_patches_comes_to_the_unmasked_model() -> None:
    """Without scores the output is the plain one to the bit, and every block of the plain model is
    one of the masked one's: there is nothing that an export would lack."""
    recipe = masked()
    model, given = stirred(recipe), inputs(recipe)
    assert not model.aux
    with torch.no_grad():
        plain = given.of(model)
        found = given.of(model, tricks=of(recipe))
        assert torch.equal(found.output, plain.output)
        assert found.kept is None
        target = torch.randn(2, 32, 48)
        wanted = masked_loss(plain, target)
        gaps = []
        for share in (0.75, 0.25, 0.01):
            tricks = of(masked(share))
            loss = masked_loss(given.of(model, tricks=tricks, scores=given.scores), target)
            gaps.append(float((loss - wanted).abs().max()))
    assert gaps[2] < gaps[0]
    assert gaps[2] < 0.05 * float(wanted.min())


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_hidden_states_of_a_block_are_projected(projector: str) -> None:
    """All tokens in their order; what is captured changes no output; and without a teacher there is
    no projector."""
    recipe = with_trick(alignment={**ALIGNMENT, "projector": projector})
    model, given = stirred(recipe), inputs(recipe)
    denoiser = model.denoiser
    with torch.no_grad():
        found = given.of(model, tricks=of(recipe), scores=given.scores)
        tokens, context = denoiser.enter(given.noised, given.timesteps, given.text, given.mask)
        for number in range(2):
            tokens = denoiser.through(number, tokens, context)
        layers = model.aux["projector"].layers
        if projector == "conv":
            image = layers(tokens.mT.reshape(2, 32, 4, 8))
            expected = image.permute(0, 2, 3, 1).reshape(2, 32, TEACHER_WIDTH)
        else:
            expected = layers(tokens)
        torch.testing.assert_close(found.hidden, expected)
        assert torch.equal(found.output, given.of(model).output)
    assert found.visible is None
    bare = TextToImage(denoiser, None)
    assert given.of(bare, tricks=of(recipe)).hidden.shape == (2, 32, 32)


def test_the_scores_alone_decide() -> None:
    """A sample's output does not depend on which others are computed with it: any number of ranks
    draws the same."""
    recipe = routed("prx")
    model, given = stirred(recipe), inputs(recipe)
    second = Inputs(**{name: value[1:] for name, value in vars(given).items()})
    with torch.no_grad():
        both = given.of(model, tricks=of(recipe), scores=given.scores).output
        alone = second.of(model, tricks=of(recipe), scores=second.scores).output
        other = replace(second, scores=1 - second.scores)
        others = other.of(model, tricks=of(recipe), scores=other.scores).output
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(alone, others, atol=1e-2)


@pytest.mark.parametrize(
    ("objective", "stages", "sentence"),
    [
        (
            {"routing": {"kind": "sprint", "share": 0.5, "first": 0, "last": 0}},
            STAGES[:1],
            "set routing: false in the last",
        ),
        ({"masking": {"share": 0.5, "mixerDepth": 3}}, STAGES, "mixerDepth"),
        (
            {
                "masking": {"share": 0.5, "mixerDepth": 1},
                "alignment": {**ALIGNMENT, "projector": "conv"},
            },
            STAGES,
            "a layer below 1",
        ),
    ],
)
def test_what_cannot_be_exported_or_computed_is_refused(
    objective: dict[str, Any], stages: list[dict[str, Any]], sentence: str
) -> None:
    """With the field and the remedy."""
    with pytest.raises(RecipeError, match=sentence):
        recipe_of(objective=objective, stages=stages)
