"""A process of a node that fills a shared cache from a store, and can be killed at any point.

    python data_cache_process.py <remote folder> <cache folder> <limit or 0> <seconds a part takes>

Reads lines from standard input. Each starts a process of its own, as each rank is, that gets the
shards whose numbers the line holds; its number is printed, then, when it is through, `<number> ok
<downloads>` or `<number> <what went wrong>`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from faulty_data_store import FaultyFolder, FaultyStore

from daybreak_trainer.data import pace
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.shards import Shards

PART_BYTES = 2048
"""Read at once here, so that the tests' small shards arrive in several parts."""


def main() -> None:
    remote, cache = Path(sys.argv[1]), Path(sys.argv[2])
    limit, seconds = int(sys.argv[3]), float(sys.argv[4])
    FaultyStore.folders["store"] = FaultyFolder(remote)

    pace._SMALLEST = pace._FIRST = pace._LARGEST = PART_BYTES

    def take_time(name: str, _before: int) -> None:
        if name.endswith(".mds"):
            time.sleep(seconds)

    FaultyStore.folders["store"].fault = take_time
    for line in sys.stdin:
        numbers = [int(number) for number in line.split()]
        if pid := os.fork():
            _tell(str(pid))
            continue
        _fill(numbers, cache, limit or None)
        os._exit(0)


def _fill(numbers: list[int], cache: Path, limit: int | None) -> None:
    try:
        counters = DataCounters()
        corpus = open_corpus([Stream("faulty://store")], counters)
        node = NodeCache(cache, limit, counters)
        shards = Shards(corpus, node, counters, downloads=3, processes=2)
        shards.announce(dict.fromkeys(numbers, 0))
        for number in numbers:
            file = shards.get(number)
            first = corpus.shards[number].first
            assert file.text(0, "caption") == f"number {first}"
        result = f"ok {counters.read().cache_misses}"
    except BaseException as error:  # noqa: BLE001 (told to the test)
        result = repr(error)
    _tell(f"{os.getpid()} {result}")


def _tell(line: str) -> None:
    """In one write: lines of several processes must not mix."""
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main()
