"""What a device holds by formula is what autograd keeps, less what a recipe leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_networks import recipe_of

from daybreak_trainer.models import denoiser
from daybreak_trainer.plan.memory import (
    Layout,
    block_bytes,
    checkpoint_bytes,
    device_bytes,
    largest_device_batch,
)
from daybreak_trainer.recipe import resolve

PARAMETERS = 10**9


@pytest.mark.parametrize(("kind", "text_tokens"), [("prx", 8), ("prx", 64), ("sana", 8)])
def test_a_block_keeps_what_autograd_saves(kind: str, text_tokens: int) -> None:
    """Bytes of the tensors that its backward pass needs, parameters aside. Looked at in fp32, for a
    CPU attends in it anyway: of that bf16 takes half, and more where a norm computes in fp32."""
    shape = {"hiddenSize": 256, "depth": 2, "mlpRatio": 3.0, "patchSize": 4}
    recipe = recipe_of(kind, denoiser=shape)
    model = denoiser.build(recipe, 16).to(torch.float32)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    noised = torch.zeros(2, 3, 64, 64, dtype=torch.float32)
    text = torch.zeros(2, text_tokens, 16, dtype=torch.float32)
    mask = torch.ones(2, text_tokens, dtype=torch.bool)
    tokens, context = model.enter(noised, torch.full((2,), 0.5), text, mask)
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for number in range(2):
            tokens = model.through(number, tokens, context)
            sizes.append(
                sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in own)
            )
    found = sizes[1] - sizes[0]  # the first keeps what all share, too
    assert 0.5 * found < 2 * block_bytes(recipe, 256, text_tokens, "none") < 0.62 * found


def given(**more: Any) -> int:
    recipe = resolve({"preset": "micro", **more.pop("recipe", {})})
    return device_bytes(recipe, PARAMETERS, replace(Layout(8, 8, 32, "blocks"), **more))


def test_what_needs_less_memory_is_reckoned_with() -> None:
    """Masking in every stage, checkpointing, sharding; and what needs more: power averages."""
    plain = given()
    masked = [{"resolution": 512, "share": 1.0, "batchSize": 2048}]
    assert given(recipe={"stages": masked}) < 0.6 * plain
    assert given(activation_checkpointing="blocks") < 0.4 * plain
    assert given(activation_checkpointing="budget", memory_budget=0.5) < 0.6 * plain
    assert given(shards=1) == plain + 20 * PARAMETERS - 20 * PARAMETERS // 8
    averaged = {"ema": {"power": {"snapshots": 4}}}
    assert given(recipe=averaged) == plain + 8 * PARAMETERS // 8
    power = resolve({"preset": "micro", **averaged})
    assert checkpoint_bytes(power, PARAMETERS) == 24 * PARAMETERS


def test_an_evaluation_lends_the_encoder_to_the_device() -> None:
    """Of embeddings that were made before, beside the training state and no step's activations."""
    text = {"path": "google/t5gemma-2b-2b-ul2", "precomputed": True}
    recipe = resolve({"preset": "micro", "text": text})
    large, small = Layout(8, 8, 32, evaluates=True), Layout(8, 8, 1, evaluates=True)
    for layout, more in ((large, False), (small, True)):
        without = device_bytes(recipe, PARAMETERS, replace(layout, evaluates=False))
        assert (device_bytes(recipe, PARAMETERS, layout) > without) == more
    state = 20 * PARAMETERS // 8 + 8 * PARAMETERS // recipe.denoiser.depth
    assert device_bytes(recipe, PARAMETERS, small) == state + 2 * 2_614_341_888
    live = resolve({"preset": "micro", "text": text | {"precomputed": False}})
    assert device_bytes(live, PARAMETERS, large) == device_bytes(
        live, PARAMETERS, replace(large, evaluates=False)
    )


def test_the_device_batch_that_is_named_fits_and_a_larger_one_does_not() -> None:
    recipe, layout = resolve({"preset": "consumer"}), Layout(4, 4)
    named = largest_device_batch(recipe, PARAMETERS, layout, 24 * 10**9)
    assert named is not None
    sizes = [
        device_bytes(recipe, PARAMETERS, replace(layout, device_batch_size=n)) for n in (named, 128)
    ]
    assert sizes[0] <= 24 * 10**9 < sizes[1]
    assert largest_device_batch(recipe, PARAMETERS, layout, 10**9) is None
