"""Joining and leaving the group of ranks: NCCL for gradients on GPUs, gloo on CPUs, and gloo beside
NCCL for everything small that the host decides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

_JOIN_TIMEOUT = timedelta(minutes=10)
"""Generous: on a cold node the others may still be pulling data or compiling."""


@dataclass(frozen=True)
class Rank:
    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


@contextmanager
def joined() -> Iterator[Rank]:
    """This process as a rank of the group that torchrun's environment describes.

    On an error the group is abandoned, not destroyed: the peers must see the connection break at
    once instead of waiting in a collective.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    dist.init_process_group(backend, timeout=_JOIN_TIMEOUT)
    yield Rank(dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()
