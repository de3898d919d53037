"""`skip.json`: samples that are left out of training without rewriting their shards."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.index import ShardInfo

Numbers = npt.NDArray[np.int64]


def parse_skips(raw: bytes, where: str, shards: Sequence[ShardInfo]) -> dict[int, Numbers]:
    """For each shard (by its place in the index) that has any, the samples to skip, sorted.

    Raises:
        DatasetError: not of the form `{"shard.00000.mds": [3, 17]}`, a shard that the index does
            not list, or a sample that the shard does not have.
    """
    try:
        listed = json.loads(raw)
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON: {error}") from None
    if not isinstance(listed, dict):
        raise DatasetError(f'{where}: not of the form {{"shard.00000.mds": [3, 17]}}')
    places = {shard.raw.name: place for place, shard in enumerate(shards)}
    skips = {}
    for name, numbers in listed.items():
        if name not in places:
            raise DatasetError(f"{where}: the index lists no shard {name}")
        skipped = _checked(numbers, shards[places[name]].samples, f"{where}: {name}")
        if len(skipped):
            skips[places[name]] = skipped
    return skips


def _checked(numbers: object, samples: int, where: str) -> Numbers:
    if not isinstance(numbers, list):
        raise DatasetError(f"{where}: a list of sample numbers belongs here, not {numbers!r}")
    for number in numbers:
        if type(number) is not int or not 0 <= number < samples:
            raise DatasetError(
                f"{where}: {number!r} is no sample of this shard; they are 0 to {samples - 1}"
            )
    return np.unique(np.array(numbers, dtype=np.int64))


def nth_kept(ordinals: Numbers, skipped: Numbers) -> Numbers:
    """Numbers in the shard of the samples that are its `ordinals`-th not to be skipped."""
    before = skipped - np.arange(len(skipped))  # kept samples that lie before each skipped one
    return ordinals + np.searchsorted(before, ordinals, side="right")
