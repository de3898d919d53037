"""Sharded checkpoints on S3 are what they are on a volume."""

from __future__ import annotations

import runpy
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from free_ports import free_port
from s3_server import S3Server

from daybreak_trainer.checkpoint import dcp
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.checkpoint.together import Together
from daybreak_trainer.parallel.process_group import Rank

SCRIPT = Path(__file__).with_name("dcp_rank.py")
RANKS = 2
_SECONDS = 120.0


@pytest.mark.training
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_ranks_save_the_same_to_s3_as_to_a_volume(
    s3: S3Server, tmp_path: Path, fork_server: ForkServerContext
) -> None:
    """Two ranks' shards, in several parts each, loaded by one process; file by file the same
    bytes."""
    options = s3.options() | {"default_block_size": 5 << 20}
    stores = [(str(tmp_path / "local"), {}), (f"s3://{s3.new_bucket()}/run/step", options)]
    port = free_port()
    ranks = []
    for rank in range(RANKS):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        given = {"given": {"environment": environment, "stores": stores}}
        ranks.append(fork_server.Process(target=runpy.run_path, args=(str(SCRIPT), given)))
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(_SECONDS)
    assert [process.exitcode for process in ranks] == [0] * RANKS

    local, remote = (Storage(url, given) for url, given in stores)
    assert remote.files() == local.files() == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    for name in local.files():
        if name != ".metadata":  # it has an identifier of its own
            assert remote.record(name) == local.record(name)
    for store in (local, remote):
        state = {
            "weight": torch.zeros(6_000, 700),
            "odd": torch.zeros(7),
            "step": torch.tensor(0),
        }
        alone = Rank(0, 1, torch.device("cpu"))
        dcp.load(state, store, Together(alone, None, store.moved, 60.0))
        assert torch.equal(state["weight"], torch.arange(4_200_000.0).reshape(6_000, 700))
        assert torch.equal(state["odd"], torch.arange(7.0))
        assert state["step"] == 7
