"""The journal of a run: one line a step, saved inside every checkpoint.

Because it travels with the checkpoint it follows the lineage: steps that were lost with a crash are
not in it, steps that were trained again are in it once. Two runs that trained the same way have the
same positions and signatures, and losses that differ by rounding only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from daybreak_trainer.checkpoint.layout import HISTORY
from daybreak_trainer.checkpoint.storage import Storage


@dataclass(frozen=True)
class HistoryLine:
    step: int
    """Optimizer steps done, this one included."""
    position: int
    """Samples trained before this step."""
    size: int
    """Global batch size."""
    samples: str
    """Signature of the samples (`data.signature`), hexadecimal."""
    loss: float
    world: int
    """Ranks that computed it."""


def encode(lines: list[HistoryLine]) -> bytes:
    return "".join(json.dumps(asdict(line)) + "\n" for line in lines).encode()


def read(checkpoint: Storage) -> list[HistoryLine]:
    """The journal of a checkpoint, oldest step first."""
    return [HistoryLine(**json.loads(line)) for line in checkpoint.read(HISTORY).splitlines()]
