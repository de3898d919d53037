"""A run on an autoencoder's latents, from `prepare` to resume: real ranks over gloo."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from rank_runs import Bench
from tiny_autoencoders import CHANNELS, save_kl

from daybreak_trainer.contract import ExitCode
from daybreak_trainer.models.autoencoder import load
from daybreak_trainer.prepare.datasets import prepare_datasets
from daybreak_trainer.prepare.latents import LatentColumn
from daybreak_trainer.recipe import Recipe, resolve

STEPS = 12
_STORED_TOLERANCE = 2e-3
"""Stored latents are rounded to float16, 5e-4 of a value at most, and the loss is quadratic."""


def recipe(autoencoder: Path, **latent: Any) -> Recipe:
    return resolve(
        {
            "preset": "smoke",
            "denoiser": {"patchSize": 2},
            "latent": {
                "autoencoder": str(autoencoder),
                "channels": CHANNELS,
                "downsampling": 4,
                **latent,
            },
            "stages": [{"resolution": 16, "steps": STEPS, "batchSize": 5}],
            "schedule": {"warmupSteps": 2},
            "objective": {"prediction": "v", "noiseScale": 1.0},
        }
    )


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_kl(tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def dataset(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with their images and latents."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    added = [LatentColumn(load(str(autoencoder), "--latents"))]
    prepare_datasets("digits", folder, [16], added=added, count=40, shard_bytes=1 << 12)
    return folder


def test_stored_latents_train_as_images_encoded_in_every_step_do(
    autoencoder: Path, dataset: Path, fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """The same samples, and the same losses but for the rounding of what is stored; a stop and a
    resume on another number of ranks are in the middle of it."""
    stored = Bench(tmp_path / "stored", dataset, fork_server, recipe(autoencoder))
    assert stored.attempt(1, ranks=1, stop_at=2) == [ExitCode.CHECKPOINTED]
    assert stored.attempt(2, ranks=2, stop_at=7) == [ExitCode.CHECKPOINTED] * 2
    encoded = Bench(
        tmp_path / "encoded", dataset, fork_server, recipe(autoencoder, precomputed=False)
    )
    assert encoded.attempt(1, ranks=1, stop_at=7) == [ExitCode.CHECKPOINTED]
    lines, others = stored.journal(2), encoded.journal(1)
    assert len(lines) == len(others) == 9
    assert [line.world for line in lines] == [1] * 4 + [2] * 5
    losses = [line.loss for line in lines]
    assert losses == pytest.approx([line.loss for line in others], rel=_STORED_TOLERANCE)
    assert losses != [line.loss for line in others]


def test_latents_of_another_autoencoder_are_refused(
    dataset: Path, fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Before the first step, with what differs; and so is data that has no latents."""
    other = recipe(save_kl(tmp_path / "kl", seed=1))
    bench = Bench(tmp_path / "run", dataset, fork_server, other)
    assert bench.attempt(1, ranks=1) == [ExitCode.BAD_DATA]
    assert "its latents have checksum" in bench.said(1, 0)
    assert "recipe.latent.autoencoder" in bench.said(1, 0)
    prepare_datasets("digits", tmp_path / "images", [16], count=20)
    bench = Bench(tmp_path / "run", tmp_path / "images", fork_server, other)
    assert bench.attempt(2, ranks=1) == [ExitCode.BAD_DATA]
    assert "no column latent" in bench.said(2, 0)
