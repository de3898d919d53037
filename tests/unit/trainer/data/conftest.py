"""Opening a corpus as a rank does, with everything that a test may want to turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faulty_data_store import FaultyFolder, FaultyStore

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.batch import Batch, StepPlan
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters, DataCounts
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.data.retry import RetryPolicy
from daybreak_trainer.data.shards import Shards

QUICK = RetryPolicy(
    total_seconds=60, stall_seconds=60, first_wait_seconds=0.01, longest_wait_seconds=0.05
)
"""Repeats at once, and gives no request up that a machine which stands still for a while delays."""


@dataclass
class Reader:
    """One process's way to some streams."""

    cache: Path
    streams: Sequence[Stream]
    limit_bytes: int | None = None
    policy: RetryPolicy = QUICK
    columns: Sequence[str] | None = None
    validation_samples: int = 0
    counters: DataCounters = field(default_factory=DataCounters)
    loaders: list[Loader] = field(default_factory=list)

    @property
    def counts(self) -> DataCounts:
        return self.counters.read()

    def corpus(self) -> Corpus:
        return open_corpus(
            self.streams, self.counters, self.policy, self.columns, self.validation_samples
        )

    def shards(self, downloads: int = 4) -> tuple[Corpus, Shards]:
        corpus = self.corpus()
        cache = NodeCache(self.cache, self.limit_bytes, self.counters)
        return corpus, Shards(corpus, cache, self.counters, downloads=downloads)

    def loader(
        self,
        sizes: Sequence[int],
        start: DataPosition | None = None,
        first_step: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 3,
        **options: Any,
    ) -> Loader:
        corpus, shards = self.shards()
        plans = [StepPlan(first_step + step, size) for step, size in enumerate(sizes)]
        loader = Loader(
            corpus,
            shards,
            start or DataPosition(),
            plans,
            seed=seed,
            rank=rank,
            world=world,
            **options,
        )
        self.loaders.append(loader)
        return loader

    def batches(self, sizes: Sequence[int], **options: Any) -> list[Batch]:
        loader = self.loader(sizes, **options)
        try:
            return list(loader)
        finally:
            loader.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    made: list[Reader] = []

    def make(*urls: str | Path | Stream, **options: Any) -> Reader:
        streams = [url if isinstance(url, Stream) else Stream(str(url)) for url in urls]
        made.append(Reader(options.pop("cache", tmp_path / "cache"), streams, **options))
        return made[-1]

    yield make
    for one in made:
        for loader in one.loaders:
            loader.close()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[FaultyFolder]:
    """A misbehaving store of `tmp_path/remote`, at `faulty://store`."""
    folder = FaultyFolder(tmp_path / "remote")
    folder.root.mkdir()
    FaultyStore.folders["store"] = folder
    yield folder
    del FaultyStore.folders["store"]
