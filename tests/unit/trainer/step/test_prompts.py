"""Captions of a step: padding costs time and changes nothing, and neither does the order in which
they are dealt to passes."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import save_qwen, save_t5
from torch import Tensor

from daybreak_trainer.data import embeddings as stored
from daybreak_trainer.models import text_to_image
from daybreak_trainer.parallel import microbatch
from daybreak_trainer.parallel.microbatch import Pass
from daybreak_trainer.prompts import PromptReader
from daybreak_trainer.recipe import Recipe, resolve

Reads = runpy.run_path(str(Path(__file__).with_name("ranks.py")))["Reads"]
CPU = torch.device("cpu")
WORDS = ["a", "red", "blue", "square", "circle"]
CAPTIONS = ("a red square a blue circle a red circle", "a circle", "red", "a blue square a circle")


@dataclass(frozen=True)
class Batch:
    positions: np.ndarray[Any, np.dtype[np.int64]]
    tensors: dict[str, Tensor]
    captions: tuple[str, ...]
    text_lengths: np.ndarray[Any, np.dtype[np.int64]] | None = None


def recipe(text: dict[str, Any]) -> Recipe:
    return resolve({"preset": "smoke", "text": text})


def batch() -> Batch:
    numbers = torch.arange(4)
    return Batch(numbers.numpy() + 100, {"image": numbers[:, None].clone()}, CAPTIONS)


def text(kind: str, folder: Path, **given: Any) -> dict[str, Any]:
    if kind == "joint":
        return given
    path = (save_t5 if kind == "t5" else save_qwen)(folder, WORDS)
    return {
        "kind": "pretrained",
        "path": str(path),
        "hiddenSize": None,
        "depth": None,
        "heads": None,
        **given,
    }


@pytest.mark.parametrize("kind", ["joint", "t5", "qwen"])
@pytest.mark.parametrize("denoiser", ["prx", "sana"])
def test_padding_changes_nothing_but_its_cost(kind: str, denoiser: str, tmp_path: Path) -> None:
    """One caption of up to 12 tokens padded to 16 and to 64, one dropped: what the model predicts
    is the same, and the host read no value of the device's on the way."""
    predictions = []
    for number, padding in enumerate(("longest", "max")):
        given = text(kind, tmp_path / str(number), maxTokens=64, padding=padding)
        made = resolve(
            {
                "preset": "smoke",
                "text": given,
                "denoiser": {"kind": denoiser},
                "objective": {"prediction": "x" if denoiser == "prx" else "v"},
            }
        )
        model, tower = text_to_image.build(made, WORDS)
        assert tower.mask_form == ("causal" if kind == "qwen" else "padding")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # as built, gates and the last layer are zero
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        reader = PromptReader(made.text, tower, CPU, torch.float32)
        _, prompts = reader.read(batch(), 1)
        with Reads() as reads, torch.no_grad():
            dropped = torch.tensor([False, False, True, False])
            given_text = prompts.conditioning(Pass(0, 4, 4), dropped)
        assert not reads.found
        assert given_text.mask.shape[1] == (16, 64)[number]
        noised = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            output = model(
                noised,
                torch.full((4,), 0.5),
                given_text.mask,
                input_ids=given_text.input_ids,
                text=given_text.text,
            ).output
        predictions.append(output)
    assert predictions[0].abs().max() > 0.1
    torch.testing.assert_close(predictions[0], predictions[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["joint", "t5"])
def test_captions_are_dealt_by_length_and_everything_goes_along(kind: str, tmp_path: Path) -> None:
    """Short ones share a pass and are not padded to the longest of the step; positions and images
    keep to their captions, and each caption's states are those it has without it."""
    found = {}
    for buckets in (False, True):
        given = text(kind, tmp_path / str(buckets), padding="longest", paddingMultiple=4)
        made = recipe({**given, "maxTokens": 16, "lengthBuckets": buckets})
        _, tower = text_to_image.build(made, WORDS)
        reader = PromptReader(made.text, tower, CPU, torch.float32)
        dealt, prompts = reader.read(batch(), 2)
        assert dealt.tensors["image"][:, 0].tolist() == (dealt.positions - 100).tolist()
        assert list(dealt.captions) == [CAPTIONS[n - 100] for n in dealt.positions]
        nothing = torch.zeros(2, dtype=torch.bool)
        passes = [
            prompts.conditioning(p, nothing) for p in microbatch.split(microbatch.PassPlan(2, 2), 4)
        ]
        found[buckets] = [part.mask.shape[1] for part in passes]
        lengths = torch.cat([part.mask.sum(dim=1) for part in passes]).tolist()
        by_position = dict(zip(dealt.positions.tolist(), lengths, strict=True))
        assert by_position == {100: 10, 101: 3, 102: 2, 103: 6}
    assert found == {False: [12, 8], True: [4, 12]}


@pytest.mark.parametrize("precision", ["bf16", "8bit"])
def test_precomputed_embeddings_stand_in_for_the_encoder(
    precision: stored.Precision, tmp_path: Path
) -> None:
    """The same captions, masks and empty prompt as encoding them in the step gives; the text does
    not go through the model's inputs twice."""
    given = text("t5", tmp_path, padding="longest", paddingMultiple=4, maxTokens=16)
    online = recipe(given)
    _, tower = text_to_image.build(online, WORDS)
    hidden, mask = tower.embed(CAPTIONS)
    values = [
        stored.encoded(states[: int(own.sum())], precision)
        for states, own in zip(hidden, mask, strict=True)
    ]
    packed, scale, lengths = stored.packed(values, tower.hidden_size, precision)
    tensors = {**batch().tensors, stored.TEXT: packed}
    if scale is not None:
        tensors[stored.SCALE] = scale
    read = Batch(batch().positions, tensors, CAPTIONS, lengths)
    null, _ = tower.embed([""])
    reader = PromptReader(
        recipe({**given, "precomputed": True}).text, tower, CPU, torch.float32, null[0, :1]
    )
    dealt, prompts = reader.read(read, 1)
    assert set(dealt.tensors) == {"image"}
    dropped = torch.tensor([False, True, False, False])
    before = prompts.conditioning(Pass(0, 4, 4), dropped)
    _, encoded = PromptReader(online.text, tower, CPU, torch.float32).read(batch(), 1)
    now = encoded.conditioning(Pass(0, 4, 4), dropped)
    assert before.text is not None
    assert now.text is not None
    assert torch.equal(before.mask, now.mask)
    real = now.mask[:, :, None]
    torch.testing.assert_close(before.text * real, now.text * real, rtol=2e-2, atol=2e-2)
