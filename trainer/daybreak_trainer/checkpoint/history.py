"""The journal of a run: one line a step and one an evaluation, saved inside every checkpoint.

Because it travels with the checkpoint it follows the lineage: steps that were lost with a crash are
not in it, steps that were trained again are in it once. Two runs that trained the same way have the
same positions and signatures, and losses that differ by rounding only.

It is JSON lines in gzip (`zcat history.jsonl.gz`), whole in every checkpoint, so that removing old
checkpoints loses no line of it. Full blocks are compressed once and kept as bytes: however long the
run, a commit compresses one block at most. About 30 bytes a step.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from daybreak_trainer.checkpoint.layout import HISTORY
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import Validation

_BLOCK_LINES = 1000


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
    """May be NaN or infinite: then a string in the file, for JSON knows no such numbers."""
    world: int
    """Ranks that computed it."""


Line = HistoryLine | Validation
_VALIDATION = "validation"
"""The one key of an evaluation's line."""


class Journal:
    """Grows by a line a step; memory and the cost of a commit stay small."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._blocks: list[bytes] = []
        self._open: list[Line] = []
        for line in lines:
            self.append(line)

    @classmethod
    def decode(cls, raw: bytes) -> Journal:
        """A journal that goes on from an encoded one, which stays compressed as it is."""
        journal = cls()
        if raw:
            journal._blocks.append(raw)
        return journal

    def append(self, line: Line) -> None:
        self._open.append(line)
        if len(self._open) == _BLOCK_LINES:
            self._blocks.append(_compress(self._open))
            self._open = []

    def encode(self) -> bytes:
        """The file: gzip members one after the other are a gzip file."""
        return b"".join([*self._blocks, _compress(self._open) if self._open else b""])

    def __iter__(self) -> Iterator[HistoryLine]:
        """Steps, oldest first."""
        return (line for line in self._lines() if isinstance(line, HistoryLine))

    def evaluations(self) -> Iterator[Validation]:
        """Oldest first."""
        return (line for line in self._lines() if isinstance(line, Validation))

    def _lines(self) -> Iterator[Line]:
        raw = b"".join(self._blocks)
        for line in gzip.decompress(raw).splitlines() if raw else ():
            yield _line(json.loads(line))
        yield from self._open


def _compress(lines: list[Line]) -> bytes:
    text = "".join(json.dumps(_document(line), allow_nan=False) + "\n" for line in lines)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def _line(document: dict[str, Any]) -> Line:
    if _VALIDATION in document:
        return Validation.model_validate(document[_VALIDATION])
    return HistoryLine(**document | {"loss": float(document["loss"])})


def _document(line: Line) -> dict[str, Any]:
    if isinstance(line, Validation):
        return {_VALIDATION: json.loads(line.to_json())}
    return asdict(line) | ({} if math.isfinite(line.loss) else {"loss": str(line.loss)})


def read(checkpoint: Storage) -> list[HistoryLine]:
    """The journal of a checkpoint, oldest step first."""
    return list(load(checkpoint))


def load(checkpoint: Storage) -> Journal:
    """The same, with what evaluations came to."""
    return Journal.decode(checkpoint.read(HISTORY))
