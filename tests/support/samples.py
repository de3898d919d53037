"""Every sample of a dataset, read as training reads it, for tests that look at what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.card import bucket_size
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shards import Shards


@dataclass(frozen=True)
class Sample:
    image: npt.NDArray[np.uint8]
    """`(3, height, width)`."""
    caption: str
    id: str


def read(url: str | Path, cache: Path, options: Mapping[str, Any] | None = None) -> list[Sample]:
    """In the order in which they lie in the shards."""
    return opened(url, cache, options)[1]


def opened(
    url: str | Path, cache: Path, options: Mapping[str, Any] | None = None
) -> tuple[Corpus, list[Sample]]:
    """A corpus of one stream, and its samples."""
    counters = DataCounters()
    corpus = open_corpus([Stream(str(url), options or {})], counters)
    shards = Shards(corpus, NodeCache(cache, None, counters), counters)
    found = []
    for shard in corpus.shards:
        size = bucket_size(shard.bucket)
        file = shards.get(shard.number)
        for number in range(shard.info.samples):
            image = np.empty((3, *size), dtype=np.uint8)
            caption = file.read(number, {"image": image}, size)
            found.append(Sample(image, caption, file.text(number, "id")))
    shards.close()
    return corpus, found
