"""Feeds a rank its part of every global batch, decoded ahead of the step by threads.

One thread plans: it walks along the order, announces shards some batches before they are needed,
and cuts the next batches into pieces. Decoding threads fill the pieces, each in its own rows of the
batch's tensors, so what a batch holds does not depend on their number. The training thread takes
batches in order.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.batch import Batch, StepPlan
from daybreak_trainer.data.captions import chosen
from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.embeddings import SCALE, TEXT, packed
from daybreak_trainer.data.embeddings import column as embedding_column
from daybreak_trainer.data.errors import DatasetError, DataUnavailableError
from daybreak_trainer.data.order import Indices, SampleOrder, Slots, rank_slice
from daybreak_trainer.data.patience import Patience
from daybreak_trainer.data.retry import StoppedError
from daybreak_trainer.data.shard import ShardFile
from daybreak_trainer.data.shards import Shards

_PIECE = 32
"""Most samples that a thread decodes at a time."""
_SCOUTED_BATCHES = 64
_COMING_SHARDS = 32


@dataclass(eq=False)
class _Planned:
    """A batch on its way; `done` is set when every piece is filled, or one failed."""

    plan: StepPlan
    slots: Slots
    own: int
    after: DataPosition
    shards: dict[int, int] = field(default_factory=dict)
    """Those it needs, and the epoch of each."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    captions: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    """From which of its captions' columns each sample is read."""
    embeddings: list[bytes] = field(default_factory=list)
    text_lengths: Indices | None = None
    indices: list[int] = field(default_factory=list)
    pieces: int = 0
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Loader:
    """Iterates over the batches of `plans` on one rank, from where `start` says the data stands.

    An error of the data surfaces in the training thread, at the step that needed it, and nothing
    after it is handed out. While there is no batch, the training thread logs what it waits for.
    """

    def __init__(
        self,
        corpus: Corpus,
        shards: Shards,
        start: DataPosition,
        plans: Iterable[StepPlan],
        *,
        seed: int,
        rank: int,
        world: int,
        threads: int = 2,
        depth: int = 4,
        pinned: bool = False,
        stalled_after_seconds: float = 30.0,
        says: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`depth` batches at most are decoded or waiting; `shards` is closed with the loader.
        `says` is told what training waits for, while it waits."""
        self._corpus, self._shards = corpus, shards
        self._rank, self._world, self._pinned, self._seed = rank, world, pinned, seed
        self._piece = max(1, _PIECE // threads)
        self._stalled_after, self._says = stalled_after_seconds, says
        self._work: queue.SimpleQueue[tuple[_Planned, int, int] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Planned | Exception | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._awaited: _Planned | None = None
        self._threads = [
            threading.Thread(
                target=self._plan,
                args=(corpus.order(seed), start, iter(plans)),
                name="loader-plan",
                daemon=True,
            )
        ]
        self._threads += [
            threading.Thread(target=self._decode, name=f"loader-decode-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    # --- the training thread --------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        try:
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()  # after an error, and where the loop is left, nothing more is handed out

    def waiting_for(self) -> str | None:
        """What the next batch waits for; None where it is ready."""
        planned = self._awaited
        if planned is None:
            return "the plan of the next step"
        if planned.done.is_set():
            return None
        return self._shards.waiting_for(planned.shards) or f"decoding step {planned.plan.step}"

    def close(self) -> None:
        """Ends all threads soon, in the middle of a download too; iteration ends as well."""
        self._stopped.set()
        self._shards.close()
        self._ready.put(None)
        if (awaited := self._awaited) is not None:
            awaited.done.set()
        self._room.release()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _next(self) -> Batch | None:
        patience = Patience(self._stalled_after, self.waiting_for, self._says)
        if self._stopped.is_set():
            return None
        while True:
            try:
                planned = self._ready.get(timeout=patience.seconds())
            except queue.Empty:
                patience.lost()
            else:
                break
        if planned is None or self._stopped.is_set():
            return None
        if isinstance(planned, Exception):
            raise planned
        self._awaited = planned
        while not planned.done.wait(patience.seconds()):
            patience.lost()
        self._awaited = None
        if self._stopped.is_set():
            return None
        if planned.error is not None:
            raise planned.error
        self._room.release()
        return self._batch(planned)

    def _batch(self, planned: _Planned) -> Batch:
        slots = planned.slots
        return Batch(
            step=planned.plan.step,
            positions=slots.positions,
            indices=np.array(planned.indices, dtype=np.int64),
            tensors=planned.tensors,
            captions=tuple(planned.captions),
            global_size=planned.plan.size,
            own=planned.own,
            bucket=self._corpus.size(slots.bucket),
            after=planned.after,
            text_lengths=planned.text_lengths,
        )

    # --- the planning thread --------------------------------------------------------------------

    def _plan(self, order: SampleOrder, start: DataPosition, plans: Iterator[StepPlan]) -> None:
        try:
            scouted: deque[_Planned] = deque()
            upcoming = self._upcoming(order, start, plans)
            more = True
            while not self._stopped.is_set():
                while more and self._may_scout(scouted):
                    if (planned := next(upcoming, None)) is None:
                        more = False
                    else:
                        self._shards.announce(planned.shards)
                        scouted.append(planned)
                if not scouted:
                    break
                self._room.acquire()
                self._dispatch(scouted.popleft())
            self._ready.put(None)
        except Exception as error:  # noqa: BLE001 (raised in the training thread)
            self._ready.put(error)

    def _upcoming(
        self, order: SampleOrder, position: DataPosition, plans: Iterator[StepPlan]
    ) -> Iterator[_Planned]:
        for plan in plans:
            part = rank_slice(plan.size, self._rank, self._world)
            own = part.stop - part.start
            slots = order.batch(position, plan.size, part if own else slice(0, 1))
            position = order.after(position, plan.size)
            needed = dict(zip(slots.shards.tolist(), slots.epochs.tolist(), strict=True))
            yield _Planned(plan, slots, own, position, needed)

    def _may_scout(self, scouted: deque[_Planned]) -> bool:
        """Bounded, so that what was fetched ahead is still in the cache when it is needed."""
        if not scouted:
            return True
        if len(scouted) >= _SCOUTED_BATCHES or self._shards.coming >= _COMING_SHARDS:
            return False
        budget = self._shards.budget_bytes
        if budget is None:
            return True
        ahead = {number for planned in scouted for number in planned.shards}
        return sum(self._corpus.shards[number].info.raw.size for number in ahead) < budget

    def _dispatch(self, planned: _Planned) -> None:
        local = len(planned.slots.positions)
        height, width = self._corpus.size(planned.slots.bucket)
        planned.tensors = {
            column.name: _memory(
                (local, *(column.shape or (3, height, width))), column.dtype, self._pinned
            )
            for column in self._corpus.buckets[planned.slots.bucket]
        }
        planned.captions, planned.indices = [""] * local, [0] * local
        planned.columns = chosen(planned.plan.captions, self._seed, planned.slots.positions)
        planned.embeddings = [b""] * local
        edges = [*range(0, local, self._piece), local]
        planned.pieces = len(edges) - 1
        self._ready.put(planned)
        for begin, end in itertools.pairwise(edges):
            self._work.put((planned, begin, end))

    # --- the decoding threads -------------------------------------------------------------------

    def _decode(self) -> None:
        while (piece := self._work.get()) is not None and not self._stopped.is_set():
            planned, begin, end = piece
            try:
                self._fill(planned, begin, end)
            except StoppedError:
                return
            except Exception as error:  # noqa: BLE001 (raised in the training thread)
                planned.error = error
                planned.done.set()
            with self._lock:
                planned.pieces -= 1
                last = not planned.pieces
            if last:
                self._complete(planned)

    def _complete(self, planned: _Planned) -> None:
        """All its samples are decoded: embeddings, whose lengths differ, come side by side."""
        described = self._corpus.embeddings
        try:
            if described is not None and planned.error is None:
                text, scale, planned.text_lengths = packed(
                    planned.embeddings, described.width, described.precision, pinned=self._pinned
                )
                planned.tensors[TEXT] = text
                if scale is not None:
                    planned.tensors[SCALE] = scale
        except ValueError as error:
            planned.error = DatasetError(
                f"step {planned.plan.step}: {error}; prepare the data anew"
            )
        planned.done.set()

    def _fill(self, planned: _Planned, begin: int, end: int) -> None:
        slots = planned.slots
        memory = {
            column.name: _bytes_of(planned.tensors[column.name])
            if column.shape is not None
            else planned.tensors[column.name].numpy()
            for column in self._corpus.buckets[slots.bucket]
        }
        rows = np.argsort(slots.shards[begin:end], kind="stable") + begin
        file: ShardFile | None = None  # one at a time: an open shard cannot be evicted
        last = -1
        for row in rows.tolist():
            shard = self._corpus.shards[slots.shards[row]]
            if file is None or shard.number != last:
                file, last = None, shard.number
                file = self._shards.get(last)
            ordinal = slots.ordinals[row]
            sample = int(ordinal if shard.skipped is None else shard.numbers(ordinal))
            values = {name: column[row] for name, column in memory.items()}
            try:
                self._read(planned, row, file, sample, values)
            except DataUnavailableError:
                file = self._shards.again(last, file)
                self._read(planned, row, file, sample, values)
            planned.indices[row] = shard.first + sample

    def _read(
        self, planned: _Planned, row: int, file: ShardFile, sample: int, values: dict[str, Any]
    ) -> None:
        """One sample into its row of the batch."""
        column, size = planned.columns[row], bucket_size(planned.slots.bucket)
        planned.captions[row] = file.read(sample, values, size, column)
        if self._corpus.embeddings is not None:
            planned.embeddings[row] = file.raw(sample, embedding_column(column))


def _memory(shape: tuple[int, ...], dtype: str, pinned: bool) -> Tensor:
    """For one batch. NumPy's large arrays lie on huge pages, torch's do not: the difference is up
    to twice the speed, for new memory costs a page fault a page."""
    if pinned:
        kind = torch.from_numpy(np.empty(0, dtype=dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=True)
    return torch.from_numpy(np.empty(shape, dtype=dtype))


def _bytes_of(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The memory of a batch's tensor as `(local, bytes)`."""
    array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = (
        tensor.flatten(1).view(torch.uint8).numpy()
    )
    return array
