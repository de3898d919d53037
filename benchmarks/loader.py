"""How fast batches come out of MDS shards, beside mosaicml-streaming's own loader.

    make bench NAME=loader

Both read the same local shards, shuffled, in batches of 64, and hand out stacked tensors and
captions: 16 KiB latents, 512-px JPEGs as uint8 (3, 512, 512), and 1.38 MB text embeddings; with one
and with two threads (ours) or worker processes (theirs, which has no threads), theirs also without
workers. Rounds alternate, and the median counts; every round opens its data afresh, but a worker's
start is left out: time runs from the first batch to the last. Ours verifies the hash of every shard
in that time, theirs verifies nothing, which is its default. Ratios within one run are comparable;
absolute figures are not, between machines.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.batch import StepPlan
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.data.shards import Shards

ROUNDS, BATCH = 5, 64
OUT = Path("build/bench/loader.json")
JPEG_SIDE = 512


@dataclass(frozen=True)
class Case:
    name: str
    column: str
    encoding: str
    samples: int
    """In the dataset."""
    batches: int
    """That a round reads."""
    value: Callable[[int, np.random.Generator], Any]


def latent(_number: int, generator: np.random.Generator) -> Any:
    return generator.standard_normal((32, 16, 16)).astype(np.float16)


def embedding(_number: int, generator: np.random.Generator) -> Any:
    return generator.standard_normal((300, 2304), dtype=np.float32).astype(np.float16)


def photo(number: int, generator: np.random.Generator) -> Any:
    """Smooth gradients, some structure and a camera's noise: about 70 KB as JPEG of quality 90."""
    y, x = np.mgrid[0:JPEG_SIDE, 0:JPEG_SIDE] / JPEG_SIDE
    base = np.stack([x, y, (x + y) / 2], -1) * generator.uniform(80, 200, 3)
    waves = 25 * np.sin((20 + number % 30) * x * y + generator.uniform(0, 6))[..., None]
    noise = generator.normal(0, 8, (JPEG_SIDE, JPEG_SIDE, 3))
    return Image.fromarray(np.clip(base + waves + noise, 0, 255).astype(np.uint8))


CASES = (
    Case("latents, 16 KiB", "latent", "ndarray:float16:32,16,16", 8192, 256, latent),
    Case("JPEG, 512 px", "image", "jpeg", 832, 13, photo),
    Case("text embeddings, 1.38 MB", "latent", "ndarray:float16:300,2304", 832, 13, embedding),
)


def write(case: Case, folder: Path) -> None:
    generator = np.random.default_rng(0)
    columns = {case.column: case.encoding, "caption": "str", "id": "str"}
    with MDSWriter(
        out=str(folder), columns=columns, hashes=["xxh64"], size_limit=1 << 26
    ) as writer:
        for number in range(case.samples):
            value = case.value(number, generator)
            caption = f"photo {number} of a place that somebody described in one plain sentence"
            writer.write({case.column: value, "caption": caption, "id": str(number)})
    card = {"source": "benchmark", "samples": case.samples, "resolution": JPEG_SIDE}
    card |= {"seed": 0, "licence": "none"}
    (folder / "dataset.json").write_text(json.dumps(card))


class Tensors(StreamingDataset):  # type: ignore[misc]
    """The library's dataset, with samples as a training loop takes them."""

    def __getitem__(self, at: int) -> dict[str, Any]:
        sample = super().__getitem__(at)
        sample.pop("id")
        if "image" in sample:
            pixels = np.array(sample["image"].convert("RGB"))
            sample["image"] = torch.from_numpy(pixels).permute(2, 0, 1)
        else:
            sample["latent"] = torch.from_numpy(sample["latent"].copy())
        return sample


def rate(batches: Iterator[Any], count: int) -> float:
    """Samples a second from the first batch to the last."""
    next(batches)
    start = time.perf_counter()
    for _ in range(count - 1):
        next(batches)
    return (count - 1) * BATCH / (time.perf_counter() - start)


def theirs(case: Case, folder: Path, workers: int) -> float:
    clean_stale_shared_memory()
    dataset = Tensors(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    return rate(endless(), min(case.batches, case.samples // BATCH))


def ours(case: Case, folder: Path, threads: int) -> float:
    counters = DataCounters()
    corpus = open_corpus([Stream(str(folder))], counters)
    with tempfile.TemporaryDirectory() as scratch:
        cache = NodeCache(Path(scratch), None, counters)
        plans = (StepPlan(step, BATCH) for step in range(1 << 20))
        loader = Loader(
            corpus,
            Shards(corpus, cache, counters),
            DataPosition(),
            plans,
            seed=0,
            rank=0,
            world=1,
            threads=threads,
        )
        try:
            return rate(iter(loader), min(case.batches, case.samples // BATCH))
        finally:
            loader.close()


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Samples a second of every setting."""
    write(case, folder)
    settings: dict[str, Callable[[], float]] = {
        "daybreak, 1 thread": lambda: ours(case, folder, 1),
        "streaming, 1 worker": lambda: theirs(case, folder, 1),
        "daybreak, 2 threads": lambda: ours(case, folder, 2),
        "streaming, 2 workers": lambda: theirs(case, folder, 2),
        "streaming, in process": lambda: theirs(case, folder, 0),
    }
    rounds: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(ROUNDS):
        for name, work in settings.items():
            rounds[name].append(work())
    return {name: statistics.median(values) for name, values in rounds.items()}


def best(speeds: dict[str, float], whose: str) -> float:
    return max(speed for name, speed in speeds.items() if name.startswith(whose))


def main() -> int:
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(CASES):
            rows[case.name] = measure(case, Path(scratch) / str(number))
    table = Table(title=f"samples/s, batches of {BATCH}, median of {ROUNDS} rounds")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for setting in next(iter(rows.values())):
        table.add_row(setting, *(f"{speeds[setting]:,.0f}" for speeds in rows.values()))
    ratios = {name: best(s, "daybreak") / best(s, "streaming") for name, s in rows.items()}
    table.add_row("ratio, best to best", *(f"{ratio:.2f}" for ratio in ratios.values()))
    Console(width=110).print(table)
    print(f"command: make bench NAME=loader (Python {sys.version.split()[0]})")
    latents, jpeg, embeddings = ratios.values()
    headline = {
        "precomputed_ratio": round(min(latents, embeddings), 3),
        "jpeg_ratio": round(jpeg, 3),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"headline": headline, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
