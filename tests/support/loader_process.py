"""A rank that reads batches of images for ever, and says so, until it is killed.

python loader_process.py <dataset> <cache folder>
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.batch import StepPlan
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.data.shards import Shards


def main() -> None:
    counters = DataCounters()
    corpus = open_corpus([Stream(sys.argv[1])], counters)
    shards = Shards(corpus, NodeCache(Path(sys.argv[2]), None, counters), counters)
    plans = (StepPlan(step, 32) for step in itertools.count())
    for _ in Loader(corpus, shards, DataPosition(), plans, seed=0, rank=0, world=1, threads=4):
        print("batch", flush=True)


if __name__ == "__main__":
    main()
