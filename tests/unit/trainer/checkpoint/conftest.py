"""What tests of saves share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gated_store
import pytest
import torch
import torch.distributed as dist
from gated_store import Rule
from saved_run import Run

from daybreak_trainer.parallel.process_group import Rank


@pytest.fixture(scope="module")
def alone() -> Iterator[Rank]:
    """This process as the only rank of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Rank(0, 1, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.fixture
def rules() -> Iterator[list[Rule]]:
    yield gated_store.RULES
    gated_store.RULES.clear()


@pytest.fixture
def run(tmp_path: Path, alone: Rank) -> Run:
    return Run(tmp_path, alone)
