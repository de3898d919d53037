"""Faults of the stores of a pod's ranks, at a chosen request of a chosen rank.

They act through `gated_store`: the pod's launcher installs them, and the ranks inherit them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gated_store
from gated_store import Operation, Rule


@dataclass(frozen=True)
class Fault:
    operation: Operation
    match: str
    """Part of the file's path."""
    action: Literal["kill", "fill", "hold"]
    """`kill` the rank; `fill` the store; `hold` the request until the test releases it."""
    rank: int | None = None
    """None: any."""
    round: int | None = None
    """Of the ranks' lives in the pod, 0 the first; None: every."""
    skip: int = 0
    times: int = 1
    """Both count a rank's own requests, in one life of it."""


def install(faults: tuple[Fault, ...], announce: Callable[[], None], shared: Path) -> None:
    """In a process whose forks become ranks. `announce` is called when a request is held; held
    requests go on once `shared / "released"` exists."""

    def hold() -> None:
        announce()
        while not (shared / "released").exists():
            time.sleep(0.01)

    actions = {"kill": gated_store.kill, "fill": gated_store.fill, "hold": hold}
    gated_store.RULES += [
        Rule(
            fault.operation,
            fault.match,
            _of_rank(fault, actions[fault.action]),
            fault.skip,
            fault.times,
        )
        for fault in faults
    ]


def _of_rank(fault: Fault, action: Callable[[], object]) -> Callable[[], None]:
    def act() -> None:
        rank, number = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
        if fault.rank in (None, int(rank)) and fault.round in (None, int(number)):
            action()

    return act
