"""Blocks under the compiler, with tokens that leave and come back and states that are read."""

from __future__ import annotations

import pytest
import torch
from small_networks import inputs, recipe_of, stirred
from torch._dynamo.testing import CompileCounterWithBackend

from daybreak_trainer.models.tricks import Tricks


# Of the compiler itself, which looks at every tensor that comes in.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", ["prx", "sana"])
def test_a_block_is_compiled_once_for_each_number_of_tokens(kind: str) -> None:
    """As a whole: tricks are between blocks, not in them. Blocks with equal shapes share a graph,
    no step compiles again, and what comes out is what comes out without the compiler."""
    recipe = recipe_of(
        kind,
        objective={
            "routing": {"kind": "sprint", "share": 0.5, "first": 1, "last": 2},
            "alignment": {"teacher": "somewhere", "layer": 1, "weight": 0.5},
        },
        stages=[
            {"resolution": 16, "steps": 1, "batchSize": 1},
            {"resolution": 16, "steps": 1, "batchSize": 1, "routing": False},
        ],
        depth=4,
    )
    model, given = stirred(recipe), inputs(recipe)
    tricks = Tricks.of(recipe, recipe.stages[0])
    eager = given.of(model, scores=given.scores, tricks=tricks)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for unit in model.units:
        unit.compile(fullgraph=True, dynamic=False, backend=counter)
    for _ in range(2):
        found = given.of(model, scores=given.scores, tricks=tricks)
        (found.output.sum() + found.hidden.sum()).backward()
    torch.testing.assert_close(found.output, eager.output)
    torch.testing.assert_close(found.hidden, eager.hidden)
    assert counter.frame_count == 2, "32 tokens, and 16 where half of them pass by"
