"""A rank knows its place among nodes."""

from __future__ import annotations

import json
import runpy
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port

from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.models import text_to_image
from daybreak_trainer.parallel.shard import shard
from daybreak_trainer.parallel.topology import ComputeError
from daybreak_trainer.recipe import resolve

SCRIPT = Path(__file__).with_name("joining_rank.py")


def joined(
    context: ForkServerContext, folder: Path, port: int, sizes: list[int]
) -> list[dict[str, Any]]:
    """What each rank knows, on nodes that have `sizes` ranks."""
    processes = []
    for node, size in enumerate(sizes):
        for local in range(size):
            environment = {
                "RANK": sum(sizes[:node]) + local,
                "WORLD_SIZE": sum(sizes),
                "LOCAL_RANK": local,
                "LOCAL_WORLD_SIZE": size,
                "GROUP_RANK": node,
                "GROUP_WORLD_SIZE": len(sizes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            given = {"environment": {k: str(v) for k, v in environment.items()}, "folder": folder}
            processes.append(context.Process(target=runpy.run_path, args=(str(SCRIPT), given)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * sum(sizes)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(sum(sizes))]


def test_ranks_agree_on_how_nodes_are_made_up(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """Of nodes with two ranks and with one, all ranks know of the smaller: none takes the nodes for
    even. Each knows its own node, and the pods of all."""
    first, second, third = joined(fork_server, tmp_path, free_port(), [2, 1])
    assert [rank["ranks_per_node"] for rank in (first, second, third)] == [1, 1, 1]
    assert [rank["nodes"] for rank in (first, second, third)] == [2, 2, 2]
    assert [rank["local_world"] for rank in (first, second, third)] == [2, 2, 1]
    assert [rank["workers"] for rank in (first, second, third)] == [[0, 0, 1]] * 3
    assert [rank["local_rank"] for rank in (first, second, third)] == [0, 1, 0]
    # What a node has not room for, its ranks do one after the other, and nodes at once.
    # FSDP gathers weights in one precision: that of the rank that has least.
    assert [rank["auto"] for rank in (first, second, third)] == [
        ["torch.float32", "torch.bfloat16"]
    ] * 3
    assert [rank["before"] for rank in (first, second, third)] == [[], ["0"], []]


def test_a_memory_budget_needs_the_compiler() -> None:
    """It is the compiler that keeps to it; the message says what to set."""
    model, _ = text_to_image.build(resolve({"preset": "smoke"}), ["a"])
    compute = ComputeSettings(activation_checkpointing="budget")
    with pytest.raises(ComputeError, match=r"set compute\.compile to blocks"):
        shard(model, model.units, None, None, compute)  # type: ignore[arg-type]
