"""What must hold between the parts of a recipe: each rule names the field and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daybreak_trainer.recipe.model import Recipe
    from daybreak_trainer.recipe.objective import Objective

_TOLERANCE = 1e-6
_LPIPS_SIDE = 16
"""In pixels: vgg16 halves an image four times."""
_SANA_SIDE = 32


def check(recipe: Recipe) -> None:
    """Raises ValueError with everything that does not fit."""
    found = list(problems(recipe))
    if len(found) > 1:
        listed = " ".join(f"({number}) {problem}." for number, problem in enumerate(found, 1))
        raise ValueError(f"{len(found)} things do not fit. {listed}")
    if found:
        raise ValueError(found[0])


def problems(recipe: Recipe) -> Iterator[str]:
    """Everything that does not fit, one sentence each."""
    yield from _stages(recipe)
    yield from _blocks(recipe)
    yield from _space(recipe)
    yield from _stock(recipe)


def _stages(recipe: Recipe) -> Iterator[str]:
    side = recipe.pixels_per_token
    for number, stage in enumerate(recipe.stages):
        if stage.resolution % side:
            yield (
                f"stages[{number}].resolution ({stage.resolution}) must be a multiple of "
                + _of_what(recipe)
            )
    yield from _warm_up(recipe)
    shares = [stage.share for stage in recipe.stages if stage.share is not None]
    if shares and len(shares) < len(recipe.stages):
        yield (
            "stages: some have steps and some a share of the run's time; give all of them one or "
            "all the other"
        )
    elif shares and abs(sum(shares) - 1.0) > _TOLERANCE:
        yield f"stages: their shares add up to {sum(shares):g}; make it 1"
    if recipe.schedule.cooldown_share >= 1.0:
        yield "schedule.cooldownShare: 1 leaves no time to train at the full rate; lower it"


def _warm_up(recipe: Recipe) -> Iterator[str]:
    if recipe.stages[0].warmup_steps:
        yield "stages[0].warmupSteps: the first stage's warm-up is schedule.warmupSteps; leave it 0"
    warm_up, total = recipe.schedule.warmup_steps, sum(stage.steps or 0 for stage in recipe.stages)
    if recipe.is_fixed and warm_up >= total:
        yield (
            f"schedule.warmupSteps ({warm_up}) must be below the run's {total} steps, or it would "
            "end before its learning rate has risen; lower it, or give stages more steps"
        )


def _of_what(recipe: Recipe) -> str:
    patch = f"denoiser.patchSize ({recipe.denoiser.patch_size})"
    if recipe.latent is None:
        return patch
    return f"{patch} times latent.downsampling ({recipe.latent.downsampling})"


def _blocks(recipe: Recipe) -> Iterator[str]:
    objective, depth = recipe.objective, recipe.denoiser.depth
    routing, alignment, masking = objective.routing, objective.alignment, objective.masking
    if routing is not None and routing.last >= depth:
        yield (
            f"objective.routing.last ({routing.last}) must be below denoiser.depth ({depth}): "
            "blocks count from 0"
        )
    if routing is not None and routing.kind == "sprint" and recipe.stages[-1].routing:
        yield (
            "objective.routing.kind: sprint fuses what stock diffusers cannot; set routing: false "
            "in the last of stages, which then trains the model that is exported"
        )
    if masking is not None and masking.mixer_depth >= depth:
        yield (
            f"objective.masking.mixerDepth ({masking.mixer_depth}) must be below denoiser.depth "
            f"({depth}): the mixer is the first blocks of the denoiser"
        )
    if alignment is not None and alignment.layer >= depth:
        yield (
            f"objective.alignment.layer ({alignment.layer}) must be below denoiser.depth "
            f"({depth}): blocks count from 0"
        )
    if routing is not None and masking is not None:
        yield "objective: routing and masking both leave tokens out; set one of them to null"
    yield from dict.fromkeys(
        problem for stage in recipe.stages for problem in _missing_tokens(objective.in_stage(stage))
    )


def _missing_tokens(objective: Objective) -> Iterator[str]:
    """Of a stage's objective: a convolution wants all tokens of the grid."""
    routing, alignment, masking = objective.routing, objective.alignment, objective.masking
    if alignment is None or alignment.projector != "conv":
        return
    if masking is not None and alignment.layer >= masking.mixer_depth:
        yield (
            "objective.alignment.projector: conv needs all tokens and objective.masking drops "
            f"some; use mlp, a layer below {masking.mixer_depth}, or stages without one of both"
        )
    if routing is not None and routing.first <= alignment.layer <= routing.last:
        yield (
            f"objective.alignment.layer ({alignment.layer}) lies among the routed blocks "
            f"{routing.first} to {routing.last}, where tokens are missing and projector: conv "
            f"needs them all; use mlp, a layer outside of these, or stages without one of both"
        )


def _sizes_for_lpips(recipe: Recipe) -> Iterator[str]:
    for number, part in enumerate(recipe.objective.perceptual):
        for stage in recipe.stages if part.kind == "lpips" else ():
            side = part.size or stage.resolution // 2
            if stage.perceptual and side < _LPIPS_SIDE:
                yield (
                    f"objective.perceptual[{number}]: lpips would see {side} px of a stage of "
                    f"{stage.resolution} px and needs {_LPIPS_SIDE}; set its size to {_LPIPS_SIDE}"
                )


def _space(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if objective.perceptual and recipe.latent is not None:
        yield "objective.perceptual compares images, and recipe.latent has none; leave it out"
    if objective.perceptual and objective.prediction != "x":
        yield "objective.perceptual compares predicted images; it needs objective.prediction: x"
    yield from _sizes_for_lpips(recipe)
    if objective.masking is not None and recipe.denoiser.kind != "prx":
        yield "objective.masking is built for denoiser.kind: prx; set it to null"
    if recipe.text.length_buckets and recipe.text.padding != "longest":
        yield "text.lengthBuckets saves nothing with text.padding: max; set padding to longest"


def _stock(recipe: Recipe) -> Iterator[str]:
    """What is trained is exported for stock diffusers, whose pipelines must be able to draw it."""
    objective, latent = recipe.objective, recipe.latent
    by_pixel_pipeline = recipe.denoiser.kind == "prx" and latent is None
    if objective.prediction == "x" and not by_pixel_pipeline:
        yield (
            "objective.prediction: of diffusers' pipelines PRXPixelPipeline alone turns x into a "
            "velocity, which draws pixels with denoiser.kind: prx; set prediction to v"
        )
    elif objective.noise_scale != 1.0 and objective.prediction == "v":
        yield (
            "objective.noiseScale: diffusers' pipelines for prediction: v start from unit noise; "
            "leave it 1"
        )
    if recipe.denoiser.kind == "sana" and latent is not None:
        last = len(recipe.stages) - 1
        if (side := recipe.stages[last].resolution) % _SANA_SIDE:
            yield (
                f"stages[{last}].resolution ({side}): diffusers' SanaPipeline draws multiples of "
                f"{_SANA_SIDE} pixels alone; make it one"
            )
