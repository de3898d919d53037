"""Every preset is a run that can start: it resolves, and its denoiser can be built."""

from __future__ import annotations

import pytest
import torch

from daybreak_trainer.models import denoiser
from daybreak_trainer.recipe import presets, resolve


@pytest.mark.parametrize("preset", presets())
def test_a_preset_resolves_and_its_denoiser_is_built(preset: str) -> None:
    """As it is, without a field to fill in. On the meta device: shapes alone."""
    recipe = resolve({"preset": preset})
    with torch.device("meta"):
        model = denoiser.build(recipe, 2304)
    assert len(model.units) == recipe.denoiser.depth
    sources = [part.teacher for part in recipe.objective.perceptual]
    assert all("/" in source for source in sources), "a name that is neither folder nor repository"


@pytest.mark.parametrize("preset", presets())
def test_the_last_resolution_is_trained_at_the_full_rate(preset: str) -> None:
    """The cooldown begins inside the last resolution's stages, not with them."""
    recipe = resolve({"preset": preset})
    last = [s for s in recipe.stages if s.resolution == recipe.stages[-1].resolution]
    whole = sum(stage.share or stage.steps or 0 for stage in recipe.stages)
    share = sum(stage.share or stage.steps or 0 for stage in last) / whole
    assert share >= recipe.schedule.cooldown_share + 0.04
