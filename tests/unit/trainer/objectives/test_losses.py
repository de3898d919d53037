"""The objective of a stage: its parts, their weights, and what is off."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from daybreak_trainer.models.tricks import Prediction
from daybreak_trainer.objectives import contrast, flow
from daybreak_trainer.objectives.draws import Draws
from daybreak_trainer.objectives.losses import Seers, Sight, StageLosses, load
from daybreak_trainer.objectives.perceptual import FeatureDistance
from daybreak_trainer.objectives.teachers import Teacher
from daybreak_trainer.recipe import Recipe, RecipeError, resolve
from daybreak_trainer.recipe.objective import Objective
from daybreak_trainer.recipe.stages import Stage

CPU = torch.device("cpu")
BASE = resolve({"preset": "smoke"}).objective
ALIGNED = {"teacher": "made here", "layer": 1, "weight": 0.5}
ROUTED = {"kind": "tread", "share": 0.5, "first": 1, "last": 2}


def objective(**changes: Any) -> Objective:
    return Objective.model_validate(BASE.model_dump() | changes)


def stage(**changes: Any) -> Stage:
    return Stage.model_validate({"resolution": 16, "steps": 1, "batch_size": 4} | changes)


def images(seed: int) -> Tensor:
    return torch.rand((4, 3, 16, 16), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def draws() -> Draws:
    return Draws(torch.tensor([0.1, 0.4, 0.7, 1.0]), images(2), torch.zeros(4, dtype=torch.bool))


def parts(given: Objective, seers: Seers, counted: int = 4, **found: Any) -> dict[str, Tensor]:
    made = StageLosses(given, seers, 4, CPU)
    prediction = Prediction(images(3), **found)
    values = made.per_sample(prediction, Sight(images(1), images(1), counted), draws())
    return dict(zip(made.names, values, strict=True))


def teacher() -> Teacher:
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    model = Dinov2Model(config).requires_grad_(False).eval()
    half = torch.full((3, 1, 1), 0.5)
    return Teacher(model, 4, 16, half, half, torch.float32, 8)


@pytest.mark.parametrize("switch", ["alignment", "routing", "masking", "contrast", "perceptual"])
def test_a_stage_switches_off_what_it_names(switch: str) -> None:
    """And nothing else."""
    seen = {"kind": "features", "teacher": "x", "weight": 0.1}
    full = objective(
        alignment=ALIGNED,
        routing=ROUTED,
        masking={"share": 0.5, "mixer_depth": 1},
        contrast=0.1,
        perceptual=[seen],
    )
    left = full.in_stage(stage(**{switch: False}))
    changed = {name for name, value in vars(full).items() if getattr(left, name) != value}
    assert changed == {switch}
    assert not getattr(left, switch)
    assert full.in_stage(stage()) == full


def test_a_stage_may_have_its_own_shift() -> None:
    """Else it is the objective's."""
    assert objective(timestep_shift=2.0).in_stage(stage()).timestep_shift == 2.0
    assert objective().in_stage(stage(timestep_shift=3.5)).timestep_shift == 3.5


def test_weights_of_zero_are_the_baseline_to_the_bit() -> None:
    """REPA and contrast of weight 0 are not there, and the flow loss does not know of them."""
    off = objective(alignment=ALIGNED | {"weight": 0.0}, contrast=0.0).in_stage(stage())
    plain = parts(objective(), Seers())
    found = parts(off, Seers(teacher()))
    assert list(found) == list(plain) == ["flow"]
    assert torch.equal(found["flow"], plain["flow"])


def test_parts_come_before_their_weights() -> None:
    """Each by its name; only hidden states get gradients of the alignment."""
    given = objective(alignment=ALIGNED, contrast=0.05)
    made = StageLosses(given, Seers(teacher()), 4, CPU)
    assert dict(zip(made.names, made.weights.tolist(), strict=True)) == pytest.approx(
        {"flow": 1.0, "contrast": -0.05, "alignment": 0.5}
    )
    seers, hidden = Seers(teacher()), torch.randn(4, 16, 8, requires_grad=True)
    found = parts(given, seers, hidden=hidden)
    found["alignment"].sum().backward()
    assert hidden.grad is not None
    assert seers.teacher is not None
    assert all(p.grad is None for p in seers.teacher.model.parameters())
    assert torch.equal(found["flow"], parts(objective(), Seers())["flow"])


@pytest.mark.parametrize("kind", ["x", "v"])
def test_contrast_is_the_distance_to_the_sample_before(kind: str) -> None:
    """`roll(v, 1)` over those that count."""
    given = objective(prediction=kind, contrast=0.05)
    found = parts(given, Seers())["contrast"]
    clean, noise, t = images(1), draws().noise, draws().timesteps
    v = flow.velocity(given, images(3), flow.noised(clean, noise, t), t)
    expected = (v - (noise - clean).roll(1, dims=0)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected)
    three = parts(given, Seers(), counted=3)["contrast"][:3]
    expected = (v[:3] - (noise - clean)[:3].roll(1, dims=0)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(three, expected)


def test_a_sample_that_is_alone_has_no_other() -> None:
    """With nobody to be told apart from, contrast is zero."""
    v = images(1)
    assert contrast.distance_per_sample(v, v, images(2), 1).tolist() == [0.0] * 4


def test_lpips_wants_sixteen_pixels() -> None:
    """In each stage that has it, after the image is halved: refused before anything is loaded."""
    seen = {"kind": "lpips", "teacher": "somewhere", "weight": 0.1}
    small = {"preset": "smoke", "stages": [{"resolution": 16, "steps": 1, "batchSize": 4}]}
    with pytest.raises(RecipeError, match=r"perceptual\[0\]: lpips would see 8 px.*size to 16"):
        resolve(small | {"objective": {"perceptual": [seen]}})
    resolve(small | {"objective": {"perceptual": [seen | {"size": 16}]}})
    small["stages"][0]["perceptual"] = False  # type: ignore[index]
    resolve(small | {"objective": {"perceptual": [seen]}})


def test_only_what_a_stage_needs_is_loaded_and_once(tmp_path: Path) -> None:
    """A teacher that aligns and compares is one; nothing is loaded for a weight of 0 or a stage
    that never comes. What it computes is counted: one look to align, and for a distance two, with a
    way back through one."""
    teacher().model.save_pretrained(tmp_path)
    source = str(tmp_path)
    seen = {"kind": "features", "teacher": source, "weight": 0.1, "size": 16}
    absent = {"kind": "lpips", "teacher": "nowhere", "weight": 0.0, "size": 16}
    given = {"alignment": ALIGNED | {"teacher": source}, "perceptual": [seen, absent]}
    one = {"resolution": 16, "steps": 1, "batchSize": 4}

    def recipe(**stage: Any) -> Recipe:
        small = {"preset": "smoke", "objective": given, "stages": [one | stage]}
        return resolve(small | {"denoiser": {"patchSize": 4, "depth": 2}})

    seers = load(recipe(), CPU)
    (pair,) = seers.distances
    assert isinstance(pair[1], FeatureDistance)
    assert pair[1].teacher is seers.teacher is not None
    off = load(recipe(alignment=False, perceptual=False), CPU)
    assert (off.teacher, off.distances) == (None, ())

    def looks(**stage: Any) -> float:
        made = recipe(**stage)
        return StageLosses(made.objective.in_stage(made.stages[0]), seers, 4, CPU).flops(16, 16)

    once = looks(perceptual=False)
    assert once > 0
    assert looks(alignment=False) == 3 * once
    assert looks() == 4 * once
    assert looks(alignment=False, perceptual=False) == 0


def test_what_no_later_stage_needs_is_let_go(tmp_path: Path) -> None:
    """A teacher stays as long as it aligns or compares in a stage that is to come; then nothing
    holds it. A roll-back to a stage that had it loads it again, once."""
    teacher().model.save_pretrained(tmp_path)
    source = str(tmp_path)
    seen = {"kind": "features", "teacher": source, "weight": 0.1, "size": 16}
    given = {"alignment": ALIGNED | {"teacher": source}, "perceptual": [seen]}
    one = {"resolution": 16, "steps": 1, "batchSize": 4}
    off = {"alignment": False, "perceptual": False}
    stages = [one | off, one, one | {"perceptual": False}, one | off, one | off]
    recipe = resolve(
        {
            "preset": "smoke",
            "objective": given,
            "stages": stages,
            "denoiser": {"patchSize": 4, "depth": 2},
        }
    )
    seers = load(recipe, CPU)
    assert seers.teacher is not None
    held = weakref.ref(seers.teacher.model)
    for stage, distances in ((0, 1), (1, 1), (2, 0)):
        seers = seers.for_stages(recipe, stage, CPU)
        assert seers.teacher is not None
        assert seers.teacher.model is held()
        assert len(seers.distances) == distances
    seers = seers.for_stages(recipe, 3, CPU)
    assert (seers.teacher, seers.distances) == (None, ())
    gc.collect()
    assert held() is None
    back = seers.for_stages(recipe, 1, CPU)
    (pair,) = back.distances
    assert isinstance(pair[1], FeatureDistance)
    assert pair[1].teacher is back.teacher is not None
