"""The FLOPs that MFU is counted in are those that the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from daybreak_trainer.models import auxiliary, flops
from daybreak_trainer.models import denoiser as denoisers
from daybreak_trainer.models import text as texts
from daybreak_trainer.models.encoding import encode
from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.models.tricks import Tricks
from daybreak_trainer.recipe import Recipe, resolve

TOLERANCE = 0.001
PRX_1B = {
    "hiddenSize": 1792,
    "depth": 16,
    "heads": 28,
    "mlpRatio": 3.5,
}
SMALL = {"hiddenSize": 64, "depth": 3, "heads": 4, "mlpRatio": 3.5}
JOINT = {"maxTokens": 16, "hiddenSize": 64, "depth": 2, "heads": 4}


SANA = {"hiddenSize": 64, "depth": 3, "heads": 4, "mlpRatio": 2.5, "kind": "sana"}
LATENT = {"autoencoder": "somewhere", "channels": 8, "downsampling": 4}
ALIGNMENT = {"teacher": "somewhere", "layer": 1, "weight": 0.5, "projectorSize": 48}
TEACHER_WIDTH = 40


def recipe(
    denoiser: dict[str, Any], text: dict[str, Any], resolution: int = 64, **more: Any
) -> Recipe:
    stages = [
        {"resolution": resolution, "steps": 1, "batchSize": 1},
        {"resolution": resolution, "steps": 1, "batchSize": 1, "routing": False},
    ]
    objective = {"prediction": "v", **more.pop("objective", {})}  # any space and family has it
    given = {"preset": "smoke", "denoiser": denoiser, "text": text, "objective": objective}
    return resolve({**given, "stages": stages, **more})


def with_trick(denoiser: dict[str, Any], **objective: Any) -> Recipe:
    objective.setdefault("alignment", ALIGNMENT)
    return recipe({**denoiser, "patchSize": 8}, JOINT, objective=objective)


def counted(made: Recipe, height: int, width: int) -> tuple[float, float]:
    """The counter's figures for a forward of everything that is trained, and for the blocks alone,
    with the tricks of the first stage.

    The denoiser is on the meta device, which computes nothing; the encoder looks at its mask.
    """
    tower = texts.build(made.text, ["a", "b"], seed=0)
    ids, mask = tower.tokenize(["a"], torch.device("cpu"))
    encoder = flops.counted(lambda: encode(tower.encoder, ids, mask))
    side = 1 if made.latent is None else made.latent.downsampling
    with torch.device("meta"):
        denoiser = denoisers.build(made, tower.hidden_size)
        model = TextToImage(denoiser, None, auxiliary.build(made, TEACHER_WIDTH))
        image = torch.empty(1, denoisers.channels(made), height // side, width // side)
        text = torch.empty(1, mask.shape[1], tower.hidden_size)
        scores = torch.empty(1, made.tokens(height, width))
        with FlopCounterMode(display=False, depth=3) as counter:
            model(
                *(image, torch.empty(1), mask.to("meta")),
                text=text,
                scores=scores,
                tricks=Tricks.of(made, made.stages[0]),
            )
    parts = counter.get_flop_counts()
    units = "blocks" if made.denoiser.kind == "prx" else "transformer_blocks"
    blocks = [
        parts[f"TextToImage.denoiser.{units}.{number}"] for number in range(made.denoiser.depth)
    ]
    return (
        counter.get_total_flops() + encoder,
        float(sum(sum(operations.values()) for operations in blocks)),
    )


@pytest.mark.parametrize(
    ("made", "height", "width"),
    [
        (recipe({**SMALL, "patchSize": 8}, JOINT), 64, 64),
        (recipe({**SMALL, "patchSize": 4, "mlpRatio": 2.7}, {**JOINT, "maxTokens": 50}), 64, 64),
        (recipe({**SMALL, "patchSize": 8, "bottleneckSize": 24}, JOINT), 64, 64),
        (recipe({**SMALL, "patchSize": 8}, JOINT), 96, 40),
        (recipe({**PRX_1B, "patchSize": 16}, {**JOINT, "maxTokens": 256}), 256, 256),
        (recipe({**PRX_1B, "patchSize": 16}, {**JOINT, "maxTokens": 256}), 512, 512),
        (
            recipe({**PRX_1B, "patchSize": 32, "bottleneckSize": 512}, {**JOINT, "maxTokens": 128}),
            *(768, 1344),
        ),
        (recipe({**SMALL, "patchSize": 2, "sharedModulation": True}, JOINT, latent=LATENT), 64, 96),
        (recipe({**SANA, "patchSize": 1}, JOINT, latent=LATENT), 64, 96),
        (with_trick(SANA, routing={"kind": "tread", "share": 0.5, "first": 1, "last": 1}), 64, 64),
        (
            with_trick(SMALL, routing={"kind": "sprint", "share": 0.75, "first": 1, "last": 2}),
            64,
            64,
        ),
        (with_trick(SMALL, masking={"share": 0.75, "mixerDepth": 1}), 64, 32),
        (with_trick(SMALL, alignment={**ALIGNMENT, "projector": "conv"}), 64, 64),
    ],
    ids=[
        *("small", "long text", "bottleneck", "oblong", "1.2B 256", "1.2B 1024", "1.2B bucket"),
        *("latent, shared modulation", "sana", "sana tread", "sprint", "masking", "conv projector"),
    ],
)
def test_the_formula_counts_what_the_model_computes(made: Recipe, height: int, width: int) -> None:
    """Within a thousandth of PyTorch's counter, for the whole and for the blocks."""
    tricks = Tricks.of(made, made.stages[0])
    sample = flops.per_sample(
        made, height=height, width=width, tricks=tricks, teacher_width=TEACHER_WIDTH
    )
    whole, blocks = counted(made, height, width)
    assert sample.trained == pytest.approx(whole, rel=TOLERANCE)
    assert sample.blocks == pytest.approx(blocks, rel=TOLERANCE)
    assert sample.frozen == 0


def test_training_is_three_forwards_and_checkpointing_one_more_of_the_blocks() -> None:
    """With a memory budget nobody knows what is computed again: there is no figure, not a guess.
    Frozen encoders run forward, and count for the device alone."""
    sample = flops.SampleFlops(trained=10.0, blocks=8.0, frozen=5.0)
    assert sample.model == 30
    assert (sample.hardware("none"), sample.device("none")) == (30, 35)
    assert (sample.hardware("blocks"), sample.device("blocks")) == (38, 43)
    assert (sample.hardware("budget"), sample.device("budget")) == (None, None)


def test_a_frozen_encoder_is_counted_as_it_runs() -> None:
    """Its forward pass is the device's work and none of the model's."""
    encoder = T5EncoderModel(
        T5Config(d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, vocab_size=10)
    )
    ids, mask = torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12, dtype=torch.bool)
    frozen = flops.counted(lambda: encode(encoder, ids, mask))
    projections, attention, mlp = 2 * 12 * 4 * 32 * 32, 4 * 32 * 12 * 12, 2 * 12 * 2 * 32 * 64
    assert frozen == pytest.approx(2 * (projections + attention + mlp), rel=TOLERANCE)
    made = recipe(
        {**SMALL, "patchSize": 8}, {"kind": "pretrained", "path": "somewhere", "maxTokens": 12}
    )
    sample = flops.per_sample(made, height=64, width=64, text_width=32, frozen_text=frozen)
    assert sample.frozen == frozen
    assert sample.device("none") == sample.model + frozen
