"""How fast verified samples come out of MDS shards, against mosaicml-streaming's own reader.

    make bench NAME=loader

Both read the same shards of the `shapes` dataset in the same random order, in one process and one
thread, and decode every image. Ours also verifies each shard's size and hash before its first
sample. Ratios within one run are comparable; absolute figures are not, between machines.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from streaming import LocalDataset

from daybreak_trainer.data.loader import Loader, StepPlan
from daybreak_trainer.data.mds import open_dataset
from daybreak_trainer.prepare.prepare import prepare

SAMPLES, ROUNDS, BATCH = 8_000, 5, 64
OUT = Path("build/bench/loader.json")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shapes"
        prepare("shapes", folder, count=SAMPLES)
        order = np.random.default_rng(0).permutation(SAMPLES)

        def ours() -> None:
            dataset = open_dataset(str(folder), {}, Path(scratch) / "cache")
            for index in order:
                dataset.get(int(index))

        def streaming() -> None:
            dataset = LocalDataset(str(folder))
            for index in order:
                np.asarray(dataset[int(index)]["image"].convert("RGB"))

        def loader() -> None:
            dataset = open_dataset(str(folder), {}, Path(scratch) / "cache")
            plans = [StepPlan(n, n * BATCH, BATCH) for n in range(SAMPLES // BATCH)]
            feed = Loader(dataset, plans, seed=0, rank=0, world=1)
            for _ in feed:
                pass
            feed.close()

        variants = {"daybreak Dataset": ours, "streaming LocalDataset": streaming}
        variants["daybreak Loader (batches)"] = loader
        rounds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(ROUNDS):
            for name, work in variants.items():
                rounds[name].append(SAMPLES / seconds(work))
    speeds = {name: statistics.median(values) for name, values in rounds.items()}
    print(f"{SAMPLES} samples of 32 px, random order, median of {ROUNDS} rounds")
    for name, speed in speeds.items():
        print(f"{name:28s} {speed:10.0f} images/s")
    print(f"\ncommand: make bench NAME=loader (python {sys.version.split()[0]})")
    headline = {
        "imagesPerSecond": round(speeds["daybreak Dataset"]),
        "loaderImagesPerSecond": round(speeds["daybreak Loader (batches)"]),
        "overStreaming": round(speeds["daybreak Dataset"] / speeds["streaming LocalDataset"], 3),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"headline": headline, "imagesPerSecond": speeds}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
