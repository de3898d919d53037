"""Joining and leaving the group of ranks: NCCL for gradients on GPUs, gloo on CPUs, and gloo beside
NCCL for everything small that the host decides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from daybreak_trainer.contract import ENV_POD_NAME

DEFAULT_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Rank:
    rank: int
    world: int
    device: torch.device
    local_rank: int = 0
    """Among the ranks of this node."""
    local_world: int = 1
    """Ranks of this node."""
    nodes: int = 1
    ranks_per_node: int = 1
    """Of the node that has the fewest: the same number on every rank."""
    workers: tuple[int, ...] = (0,)
    """By rank, the index of its pod; nodes need not have the same number of ranks."""
    pods: tuple[str, ...] = ("",)
    """By rank, the name of its pod; empty outside of pods."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        return self.local_rank == 0


@contextmanager
def joined(
    timeout: timedelta = DEFAULT_TIMEOUT, environment: Mapping[str, str] = os.environ
) -> Iterator[Rank]:
    """This process as a rank of the group that torchrun's environment describes.

    `timeout` ends a collective that a rank does not come to. Where a launcher watches the ranks it
    must be longer than the launcher's clocks, which know who is to blame.

    On an error the group is abandoned, not destroyed: the peers must see the connection break at
    once instead of waiting in a collective.
    """
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    dist.init_process_group(backend, timeout=timeout)
    world = dist.get_world_size()
    local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
    pods: list[tuple[int, int, str]] = [(0, 0, "")] * world
    here = int(environment.get("GROUP_RANK", "0")), local_world, environment.get(ENV_POD_NAME, "")
    dist.all_gather_object(pods, here)
    yield Rank(
        dist.get_rank(),
        world,
        device,
        local_rank,
        local_world,
        nodes=int(environment.get("GROUP_WORLD_SIZE", "1")),
        ranks_per_node=min(ranks for _, ranks, _ in pods),
        workers=tuple(worker for worker, _, _ in pods),
        pods=tuple(name for _, _, name in pods),
    )
    dist.destroy_process_group()
