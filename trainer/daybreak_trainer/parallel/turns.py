"""Ranks of a node that do something one after the other, because the node has not room for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from daybreak_trainer.parallel.process_group import Rank

T = TypeVar("T")


def in_turns(rank: Rank, work: Callable[[], T]) -> T:
    """What `work` returns; a collective. Of each node at most one rank is at it."""
    found: list[T] = []
    for turn in range(max(Counter(rank.workers).values())):
        if turn == rank.local_rank:
            found.append(work())
        dist.all_reduce(torch.zeros(1))  # on the host: a device may not have been used yet
    return found[0]
