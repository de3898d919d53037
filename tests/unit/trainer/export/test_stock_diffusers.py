"""The export is a stock diffusers pipeline: nobody needs Daybreak to draw with it, and what stock
diffusers draws is what Daybreak drew and judged."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from tiny_autoencoders import save_kl
from tiny_encoders import save_endless_qwen, save_t5
from tokenizers.normalizers import NFC
from torch import Tensor
from transformers import AutoTokenizer

from daybreak_trainer.evaluate import stock
from daybreak_trainer.evaluate.batches import Images
from daybreak_trainer.evaluate.sampler import noise_seed, sample
from daybreak_trainer.export.load import load_pipeline
from daybreak_trainer.export.pipeline import DTYPES, build_pipeline, check, save_folder
from daybreak_trainer.models import autoencoder
from daybreak_trainer.recipe import Recipe, RecipeError

PROMPTS, SEED = ["a red circle", "A blue square &amp; a circle"], 3


def drawn_by_diffusers(folder: Path, recipe: Recipe) -> Images:
    """As its documentation says, with noise from Daybreak's seeds; one prompt at a time, for PRX's
    pipelines take no more with guidance."""
    import diffusers

    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(folder, **without_vae(recipe))
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {}
    if recipe.denoiser.kind == "sana":
        options["complex_human_instruction"] = None
        options["max_sequence_length"] = recipe.text.max_tokens
        options["height"] = options["width"] = recipe.stages[-1].resolution
    elif recipe.objective.prediction == "v":
        options["skip_text_cleaning"] = True
    return np.concatenate(
        [_one(pipeline, recipe, number, prompt, options) for number, prompt in enumerate(PROMPTS)]
    )


def _one(
    pipeline: Any, recipe: Recipe, number: int, prompt: str, options: dict[str, Any]
) -> Images:
    generator = torch.Generator().manual_seed(noise_seed(SEED, number))
    side = recipe.stages[-1].resolution
    bare = recipe.latent is None and recipe.objective.prediction == "v"
    if bare:
        # No autoencoder: the pipeline is given noise of the image's size and gives its pixels.
        # It asks for a height and a width all the same, which then play no part.
        noise = torch.randn((1, 3, side, side), generator=generator)
        options = options | {"latents": noise, "output_type": "latent", "height": 32, "width": 32}
    else:
        options = options | {"generator": generator, "output_type": "np"}
    found = pipeline(
        prompt,
        num_inference_steps=recipe.sampling.steps,
        guidance_scale=recipe.sampling.guidance,
        use_resolution_binning=False,
        **options,
    ).images
    if bare:
        found = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    drawn: Images = (255 * found).round().astype(np.uint8)
    return drawn


def without_vae(recipe: Recipe) -> dict[str, None]:
    return {"vae": None} if recipe.denoiser.kind == "sana" and recipe.latent is None else {}


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_stock_diffusers_draws_the_same_images(kind: str, tmp_path: Path) -> None:
    """Both families, on pixels and on latents of both autoencoders: at most one of 255 levels
    apart, as rounding to bytes may be, in five steps with guidance."""
    recipe = tiny_models.recipe_of(kind, tmp_path / "autoencoder")
    weights, tower, vae = tiny_models.trained(recipe)
    check(recipe, vae)
    pipeline = build_pipeline(recipe, weights, tower, vae)
    ours = sample(
        pipeline,
        PROMPTS,
        steps=recipe.sampling.steps,
        guidance=recipe.sampling.guidance,
        seed=SEED,
    )
    save_folder(pipeline, recipe, tmp_path / "model")
    theirs = drawn_by_diffusers(tmp_path / "model", recipe)
    side = recipe.stages[-1].resolution
    assert ours.shape == theirs.shape == (2, side, side, 3)
    assert ours.std() > 5
    assert np.abs(ours[0].astype(int) - ours[1].astype(int)).max() > 5
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_stock_diffusers_reads_captions_in_learned_pieces(tmp_path: Path) -> None:
    """The tokenizer is exported with the model that was trained on it."""
    given = tiny_models.recipe_of("prx-pixel-x", tmp_path).model_dump(mode="json")
    given["text"] |= {"vocabulary": "pieces", "vocabulary_size": 320}
    recipe = Recipe.model_validate(given)
    weights, tower, _ = tiny_models.trained(recipe)
    assert len(tower.tokenizer) > 259
    pipeline = build_pipeline(recipe, weights, tower)
    sampling = recipe.sampling
    ours = sample(pipeline, PROMPTS, steps=sampling.steps, guidance=sampling.guidance, seed=SEED)
    save_folder(pipeline, recipe, tmp_path / "model")
    theirs = drawn_by_diffusers(tmp_path / "model", recipe)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_sana_is_trained_on_the_text_that_its_pipeline_reads(tmp_path: Path) -> None:
    """In lower case and stripped, whatever the tokenizer tells apart; PRX on captions as they
    are."""
    folder = save_t5(tmp_path / "t5", tiny_models.WORDS)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = NFC()  # so that Red is not red
    tokenizer.save_pretrained(folder)
    given = tiny_models.recipe_of("sana-pixel", tmp_path).model_dump(mode="json")
    text = {"kind": "pretrained", "path": str(folder), "max_tokens": 8, "caption_dropout": 0.1}
    recipe = Recipe.model_validate(given | {"text": text})
    weights, tower, _ = tiny_models.trained(recipe)
    states, mask = tower.embed([" A Red circle "])
    drawn = stock.of(build_pipeline(recipe, weights, tower)).encode([" A Red circle "], "", False)
    torch.testing.assert_close(drawn.states, states)
    assert torch.equal(drawn.mask.bool(), mask)
    cased, _ = replace(tower, lower_case=False).embed([" A Red circle "])
    assert not torch.equal(cased, states)
    assert not tiny_models.trained(tiny_models.recipe_of("prx-pixel-v", tmp_path))[1].lower_case


@pytest.mark.parametrize("kind", ["sana-pixel", "prx-pixel-v"])
def test_guidance_is_by_the_empty_prompt_that_was_trained(kind: str, tmp_path: Path) -> None:
    """Of a tokenizer that makes no token of it too: the exported pipeline reads the end token that
    training put there, and no denoiser attends to nothing."""
    folder = save_endless_qwen(tmp_path / "qwen")
    given = tiny_models.recipe_of(kind, tmp_path).model_dump(mode="json")
    text = {"kind": "pretrained", "path": str(folder), "max_tokens": 8, "caption_dropout": 0.1}
    recipe = Recipe.model_validate(given | {"text": text})
    weights, tower, _ = tiny_models.trained(recipe)
    states, mask = tower.embed([""])
    drawn = stock.of(build_pipeline(recipe, weights, tower)).encode([""], "", False)
    assert mask.sum() == 1
    assert torch.equal(drawn.mask.bool(), mask)
    torch.testing.assert_close(drawn.states[mask], states[mask])


def test_sana_takes_the_autoencoder_that_its_pipeline_takes(tmp_path: Path) -> None:
    """Before a day of training, in a sentence with what to do."""
    recipe = tiny_models.recipe_of("sana-dc", tmp_path / "dc")
    assert recipe.latent is not None
    kl = recipe.latent.model_copy(update={"autoencoder": str(save_kl(tmp_path / "kl"))})
    with pytest.raises(RecipeError, match=r"AutoencoderKL.*AutoencoderDC alone.*kind: prx"):
        check(recipe, autoencoder.build(kl))


class Counted(Mapping[str, Tensor]):
    """Weights that are made when they are asked for, as from shards, and how many there are."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights, self._made = weights, list[weakref.ref[Tensor]]()
        self.most = 0

    def __getitem__(self, name: str) -> Tensor:
        made = self._weights[name].clone()
        self._made = [one for one in (*self._made, weakref.ref(made)) if one() is not None]
        self.most = max(self.most, len(self._made))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@pytest.mark.parametrize("shared", [False, True])
def test_no_whole_model_lies_beside_the_pipeline(shared: bool, tmp_path: Path) -> None:
    """Weights are taken one by one and let go, but for the small ones that a shared modulation is
    spelled out from; in bf16 they are fp32's, rounded once."""
    recipe = tiny_models.recipe_of("prx-pixel-x", tmp_path)
    denoiser = recipe.denoiser.model_copy(update={"shared_modulation": shared})
    recipe = recipe.model_copy(update={"denoiser": denoiser})
    weights, tower, _ = tiny_models.trained(recipe)
    assert len(weights) > 50
    whole = build_pipeline(recipe, weights, tower)
    counted = Counted(weights)
    half = build_pipeline(recipe, counted, tower, dtype=torch.bfloat16)
    assert counted.most <= (3 + recipe.denoiser.depth + 2 if shared else 3)
    for part in ("transformer", "text_encoder"):
        expected = dict(getattr(whole, part).named_parameters())
        for name, value in getattr(half, part).named_parameters():
            assert torch.equal(value, expected[name].bfloat16()), name


def test_a_weight_that_is_missing_is_named(tmp_path: Path) -> None:
    """Not a model with numbers of no meaning."""
    recipe = tiny_models.recipe_of("prx-pixel-x", tmp_path)
    weights, tower, _ = tiny_models.trained(recipe)
    for name in (next(iter(weights)), next(n for n in weights if n.startswith("text_encoder."))):
        rest = {other: value for other, value in weights.items() if other != name}
        with pytest.raises(KeyError, match=name.removeprefix("denoiser.")):
            build_pipeline(recipe, rest, tower)


def test_a_frozen_encoder_draws_in_bf16_as_one_that_a_user_loads(tmp_path: Path) -> None:
    """Its rotary frequencies stay fp32: hidden states of long prompts are those of the load."""
    folder = save_endless_qwen(tmp_path / "qwen")
    given = tiny_models.recipe_of("sana-pixel", tmp_path).model_dump(mode="json")
    text = {"kind": "pretrained", "path": str(folder), "max_tokens": 64, "caption_dropout": 0.1}
    recipe = Recipe.model_validate(given | {"text": text})
    weights, tower, _ = tiny_models.trained(recipe)
    pipeline = build_pipeline(recipe, weights, tower, dtype=torch.bfloat16)
    save_folder(pipeline, recipe, tmp_path / "model")
    loaded, _ = load_pipeline(tmp_path / "model")
    prompt = "a red circle above a blue square, " * 2
    found, expected = (
        stock.of(drawer).encode([prompt], "", False) for drawer in (pipeline, loaded)
    )
    assert found.states.dtype == torch.bfloat16
    assert torch.equal(found.states, expected.states)


def test_weights_are_written_as_asked(tmp_path: Path) -> None:
    """bf16 halves the file, which holds what it says."""
    recipe = tiny_models.recipe_of("prx-pixel-x", tmp_path)
    sizes = {}
    for dtype, expected in DTYPES.items():
        pipeline = build_pipeline(recipe, *tiny_models.trained(recipe), dtype=expected)
        save_folder(pipeline, recipe, tmp_path / dtype)
        file = tmp_path / dtype / "transformer" / "diffusion_pytorch_model.safetensors"
        sizes[dtype] = file.stat().st_size
        assert {value.dtype for value in load_file(file).values()} == {expected}
    assert sizes["bf16"] < 0.6 * sizes["fp32"]
