"""Samples that training never sees: the tail of every stream in every bucket.

Which ones is a function of how many samples the datasets have, and of nothing else: datasets of
several resolutions that were made from one source, in one order, hold out the same pictures. What
`skip.json` leaves out counts as a sample here, so that skipping one does not move the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
LARGEST_SHARE = 10
"""At most a tenth of a corpus is held out, however many samples are asked for."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The validation samples of one bucket, in the order of the datasets."""

    bucket: str
    numbers: Indices
    """In the whole validation set, from 0, `(n,)`."""
    shards: Indices
    """Numbers of shards in the corpus, `(n,)`."""
    samples: Indices
    """Their numbers in their shards, `(n,)`."""


def shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """How many of `wanted` samples are held out of each part of a corpus: in proportion to `sizes`,
    by largest remainder, at most a tenth of all, and never a part's only sample."""
    total = sum(sizes)
    wanted = min(wanted, total // LARGEST_SHARE)
    found = [wanted * size // total for size in sizes]
    remainders = [wanted * size % total if size > 1 else -1 for size in sizes]
    fullest_first = sorted(range(len(sizes)), key=lambda part: (-remainders[part], part))
    for part in fullest_first[: wanted - sum(found)]:
        found[part] += remainders[part] > 0
    return found


def tails(samples: Sequence[int], wanted: int) -> list[int]:
    """How many samples at the end of each shard are the last `wanted` of shards laid end to end."""
    found = [0] * len(samples)
    for shard in reversed(range(len(samples))):
        found[shard] = min(samples[shard], wanted)
        wanted -= found[shard]
    return found
