"""What tests of the trainer under its launcher share."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from training_pods import Samples, TrainingRun

from daybreak_trainer.prepare.prepare import prepare


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several shards, which nobody changes."""
    folder = tmp_path_factory.mktemp("digits") / "dataset"
    prepare("digits", folder, count=256, shard_bytes=1 << 13)
    return folder


@pytest.fixture(scope="session")
def undisturbed(
    fork_server: ForkServerContext, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Samples:
    """What a run that is left alone trains on, step by step."""
    calm = TrainingRun(tmp_path_factory.mktemp("calm"), digits, fork_server)
    calm.complete()
    return calm.samples()


@pytest.fixture
def training(fork_server: ForkServerContext, digits: Path, tmp_path: Path) -> TrainingRun:
    """A run, before its first attempt."""
    return TrainingRun(tmp_path / "run", digits, fork_server)
