"""Validation samples: which, and that training never sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_folders import latent, name_of, write_latents

from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.holdout import LARGEST_SHARE, shares, tails
from daybreak_trainer.data.validation import read_validation
from daybreak_trainer.prepare.prepare import prepare


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=9), wanted=st.integers(0, 3000))
def test_parts_give_in_proportion(sizes: list[int], wanted: int) -> None:
    """To within one sample, all that is wanted or a tenth, and no part is emptied."""
    found = shares(sizes, wanted)
    total = sum(sizes)
    expected = min(wanted, total // LARGEST_SHARE)
    assert expected - sizes.count(1) <= sum(found) <= expected
    for size, share in zip(sizes, found, strict=True):
        assert abs(share - expected * size / total) < 1 or size == 1
        assert 0 <= share < size or not share


@given(samples=st.lists(st.integers(0, 9), max_size=6), wanted=st.integers(0, 40))
def test_a_tail_is_the_end_of_the_shards(samples: list[int], wanted: int) -> None:
    """Laid end to end."""
    marks = [
        list(range(n - held, n)) for n, held in zip(samples, tails(samples, wanted), strict=True)
    ]
    starts = np.cumsum([0, *samples])[: len(samples)]
    flat = [int(start) + n for start, numbers in zip(starts, marks, strict=True) for n in numbers]
    assert flat == list(range(max(0, sum(samples) - wanted), sum(samples)))


@pytest.fixture
def streams(tmp_path: Path) -> tuple[Path, Path]:
    """140 samples in two buckets, the last of the second one skipped, and 60 in one."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    end = write_latents(
        folders[0],
        [40, 35, 60, 5],
        skip={name_of(3): [4], name_of(0): [1]},
        buckets={"16x16": [0, 1], "8x32": [2, 3]},
    )
    write_latents(folders[1], [60], first=end)
    return folders


def held_out(corpus: Any, shards: Any) -> list[tuple[Any, int]]:
    (bucket,) = corpus.validation
    places = zip(bucket.shards.tolist(), bucket.samples.tolist(), strict=True)
    return [(shards.get(shard), number) for shard, number in places]


@pytest.mark.parametrize("world", [1, 3])
def test_training_and_validation_share_no_sample(
    reader: Callable[..., Any], streams: tuple[Path, Path], world: int
) -> None:
    """Over many epochs training sees every sample that is neither held out nor skipped; validation,
    over all its ranks, every one that is held out and not skipped, as it was written."""
    here = reader(*streams, validation_samples=20)
    trained: set[int] = set()
    for rank in range(world):
        for batch in here.batches([13] * 60, rank=rank, world=world):
            trained.update(batch.indices[: batch.own].tolist())
    # 20 of 200: 7.5, 6.5 and 6 samples of the three cells.
    held_out = {*range(67, 75), *range(134, 140), *range(194, 200)}
    skipped = {1, 139}
    assert trained == set(range(200)) - held_out - skipped
    validated: dict[int, int] = {}
    for rank in range(world):
        corpus, shards = here.shards()
        for batch in read_validation(corpus, shards, rank, world, lambda _: None):
            assert batch.rows == -(-batch.total // world)
            for row in range(batch.own):
                number = int(batch.captions[row].removeprefix("number "))
                assert (batch.tensors["latent"][row].numpy() == latent(number)).all()
                validated[int(batch.numbers[row])] = number
        shards.close()
    assert sorted(validated) == list(range(len(held_out - skipped)))
    assert set(validated.values()) == held_out - skipped


def test_validation_reads_the_captions_of_a_column(
    reader: Callable[..., Any], tmp_path: Path
) -> None:
    """Of the samples that are held out, the same ones whichever it is."""
    prepare("shapes", tmp_path / "shapes", count=40, shard_bytes=1 << 12)
    corpus, shards = reader(tmp_path / "shapes", validation_samples=4).shards()
    long, short = (
        [file.read(number, {}, (0, 0), column) for file, number in held_out(corpus, shards)]
        for column in ("caption", "caption_short")
    )
    assert len(long) == 4
    assert long != short
    for column, expected in (("caption", long), ("caption_short", short)):
        (batch,) = read_validation(corpus, shards, 0, 1, lambda _: None, column)
        assert list(batch.captions) == expected
    shards.close()


def test_what_is_held_out_is_part_of_the_data(
    reader: Callable[..., Any], streams: tuple[Path, Path], tmp_path: Path
) -> None:
    """A resume with another number notices; with none all is as it was before there was such a
    thing. A skip list moves nothing."""
    none, some = (reader(*streams, validation_samples=n).corpus() for n in (0, 20))
    assert none.validation == ()
    assert none.fingerprint == reader(*streams).corpus().fingerprint != some.fingerprint
    assert some.description.validation_samples == 20
    before = [shard.held_out for shard in some.shards]
    (streams[0] / "skip.json").unlink()
    assert [s.held_out for s in reader(*streams, validation_samples=20).corpus().shards] == before


def test_nothing_left_to_train_on_is_refused(reader: Callable[..., Any], tmp_path: Path) -> None:
    """Not a loader that never hands out a batch."""
    write_latents(tmp_path, [10], skip={name_of(0): list(range(9))})
    with pytest.raises(DatasetError, match=r"validationSamples"):
        reader(tmp_path, validation_samples=1).corpus()
