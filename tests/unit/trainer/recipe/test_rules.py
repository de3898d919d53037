"""What cannot be is refused with all that does not fit, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_trainer.recipe import RecipeError, resolve

STAGES = [{"resolution": 16, "steps": 4, "batchSize": 1}]
CONV = {"teacher": "somewhere", "layer": 1, "weight": 0.5, "projector": "conv"}
ROUTING = {"kind": "tread", "share": 0.5, "first": 0, "last": 2}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"text": {"path": "a/b"}},
            "kind: joint.*set path: null, or kind: pretrained",
        ),
        ({"text": {"heads": 5}}, r"heads \(5\) must divide hiddenSize \(32\): take 4 or 8"),
        ({"denoiser": {"heads": 5}}, r"heads \(5\) must divide hiddenSize \(32\): take 4 or 8"),
        ({"denoiser": {"heads": 16}}, "rotary axes need a multiple of 4: take 8 heads"),
        ({"denoiser": {"hiddenSize": 30}}, r"hiddenSize \(30\) must be a multiple of 4"),
        ({"denoiser": {"kind": "sana", "heads": 5}}, "take 4 or 8"),
        ({"optimizer": {"beta1": 1}}, "recipe.optimizer.beta1: .*less than 1"),
        ({"optimizer": {"beta2": 1}}, "recipe.optimizer.beta2: .*less than 1"),
        ({"optimizer": {"momentum": 1}}, "recipe.optimizer.momentum: .*less than 1"),
        ({"schedule": {"warmupSteps": 4}}, r"schedule.warmupSteps \(4\).*the run's 4 steps"),
        ({"stages": [{**STAGES[0], "warmupSteps": 2}]}, r"stages\[0\].warmupSteps"),
    ],
)
def test_a_refusal_says_what_would_fit(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        resolve({"preset": "smoke", "stages": STAGES, **given})


def test_all_that_does_not_fit_is_said_at_once() -> None:
    """Not one thing an attempt."""
    objective = {"routing": ROUTING, "masking": {"share": 0.5, "mixerDepth": 7}}
    with pytest.raises(RecipeError) as caught:
        resolve({"preset": "smoke", "schedule": {"warmupSteps": 99}, "objective": objective})
    told = str(caught.value)
    assert told.startswith("recipe: 4 things do not fit. (1) ")
    for field in ("schedule.warmupSteps", "routing.last", "masking.mixerDepth", "leave tokens out"):
        assert field in told


def test_a_projector_that_needs_all_tokens_is_refused_where_a_stage_misses_some() -> None:
    """And only there: stages may take turns."""
    given = {
        "preset": "smoke",
        "denoiser": {"depth": 3},
        "objective": {"alignment": CONV, "routing": ROUTING},
    }
    apart = [{**STAGES[0], "routing": False}, {**STAGES[0], "alignment": False}]
    assert resolve({**given, "stages": apart}).objective.routing is not None
    with pytest.raises(RecipeError, match=r"conv needs them all.*stages without one of both"):
        resolve({**given, "stages": [*apart, STAGES[0]]})
