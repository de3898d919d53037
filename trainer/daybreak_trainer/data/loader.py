"""Feeds a rank its part of every global batch, decoded ahead of the step by a background thread.

What a batch holds follows from its position alone (`order.py`); the look-ahead only hides latency.
The position that counts is the one of the batch that was *trained*, which the trainer keeps, so a
look-ahead can never skip samples at resume.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from daybreak_trainer.data.order import Indices, global_batch, rank_slice


class Sample(Protocol):
    @property
    def image(self) -> npt.NDArray[np.uint8]: ...
    @property
    def caption(self) -> str: ...


class SampleSource(Protocol):
    """What the loader needs of a dataset; `data.mds.Dataset` is one."""

    def __len__(self) -> int: ...
    def get(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch of `global_size` samples."""

    step: int
    positions: npt.NDArray[np.int64]
    """Positions of these samples in the run, `(local,)`."""
    indices: Indices
    """Dataset indices of these samples, `(local,)`."""
    images: npt.NDArray[np.uint8]
    """`(local, 3, height, width)`."""
    captions: tuple[str, ...]
    global_size: int
    own: int
    """How many of these samples count: all of them, or none. With more ranks than samples a rank
    may have none of its own; it gets another's, for every rank takes part in every collective."""


@dataclass(frozen=True)
class StepPlan:
    """Where a step's global batch lies: positions `start ... start + size - 1`."""

    step: int
    start: int
    size: int


def assemble(source: SampleSource, seed: int, plan: StepPlan, rank: int, world: int) -> Batch:
    """Reads and stacks one rank's part of a step's global batch.

    Raises:
        BadDataError: what the source raises for a missing or damaged shard.
    """
    part = rank_slice(plan.size, rank, world)
    own = part.stop - part.start
    if not own:
        part = slice(0, 1)
    indices = global_batch(seed, len(source), plan.start, plan.size)[part]
    samples = [source.get(int(index)) for index in indices]
    return Batch(
        step=plan.step,
        positions=np.arange(plan.start + part.start, plan.start + part.stop, dtype=np.int64),
        indices=indices,
        images=np.stack([sample.image for sample in samples]),
        captions=tuple(sample.caption for sample in samples),
        global_size=plan.size,
        own=own,
    )


class Loader:
    """Iterates over the batches of `plans` on one rank; closing it ends its thread.

    An error of the source (a damaged shard) surfaces in the training thread, at the step that
    needed the data, and nothing after it is handed out.
    """

    def __init__(
        self,
        source: SampleSource,
        plans: Iterable[StepPlan],
        *,
        seed: int,
        rank: int,
        world: int,
        depth: int = 4,
    ) -> None:
        self._work = (source, iter(plans), seed, rank, world)
        self._ready: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="loader", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        source, plans, seed, rank, world = self._work
        try:
            for plan in plans:
                if not self._put(assemble(source, seed, plan, rank, world)):
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 (handed to the training thread, which raises it)
            self._put(error)

    def _put(self, item: Batch | Exception | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Batch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
