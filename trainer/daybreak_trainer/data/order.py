"""Which samples a step sees, as a pure function of (seed, dataset size, samples seen so far).

Nothing here knows ranks, workers or threads, so a run that stops and goes on at any size sees the
same global batches. Positions count samples since the run began; position `p` lies in epoch
`p // size`, and every epoch is a fresh permutation of the whole dataset.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_ORDER_STREAM = 0x6F72646572  # "order": keeps this use of the seed apart from any other


@lru_cache(maxsize=3)
def _permutation(seed: int, epoch: int, size: int) -> Indices:
    generator = np.random.Generator(np.random.PCG64([_ORDER_STREAM, seed, epoch]))
    order: Indices = generator.permutation(size).astype(np.int64)
    order.setflags(write=False)
    return order


def global_batch(seed: int, dataset_size: int, start: int, size: int) -> Indices:
    """Dataset indices at positions `start ... start + size - 1`; shape `(size,)`.

    Raises:
        ValueError: an empty dataset, or a negative position or size.
    """
    if dataset_size < 1 or start < 0 or size < 0:
        raise ValueError(
            f"no global batch of {size} at position {start} in a dataset of {dataset_size}"
        )
    parts = []
    position, end = start, start + size
    while position < end:
        epoch, offset = divmod(position, dataset_size)
        take = min(end - position, dataset_size - offset)
        parts.append(_permutation(seed, epoch, dataset_size)[offset : offset + take])
        position += take
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def rank_slice(size: int, rank: int, world: int) -> slice:
    """The contiguous part of a global batch that one rank computes; parts differ by at most one."""
    return slice(size * rank // world, size * (rank + 1) // world)
