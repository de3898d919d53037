"""The loader hands out what the order says, ahead of time, and fails in the step at fault."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_data_store import FaultyFolder, hangs, held
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mds_folders import name_of, write_latents

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data.batch import Batch, StepPlan
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import ShardError
from daybreak_trainer.data.feed import DeviceFeed
from daybreak_trainer.data.order import rank_slice
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.telemetry import log

MakeReader = Callable[..., "Reader"]  # type: ignore[name-defined]  # noqa: F821 (conftest)


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """99 samples with a skip list and buckets, and 40 more."""
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    after = write_latents(
        one,
        [17, 23, 9, 30, 20],
        skip={name_of(1): [0, 5, 22], name_of(2): list(range(9)), name_of(4): [19]},
        buckets={"16x16": [0, 1, 2], "8x24": [3, 4]},
    )
    write_latents(other, [25, 15], first=after, buckets={"16x16": [0], "24x8": [1]})
    return one, other


SKIPPED = {17, 22, 39, *range(40, 49), 98}


def content(batches: list[Batch]) -> list[object]:
    return [
        (b.step, b.bucket, b.positions.tolist(), b.indices.tolist(), b.captions, b.after)
        for b in batches
    ]


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_ranks_threads_depth_and_restarts_change_nothing(
    sizes: list[int],
    seed: int,
    data: st.DataObject,
    reader: MakeReader,
    two_streams: tuple[Path, Path],
) -> None:
    """Two weighted streams with buckets and a skip list, stages of several batch sizes: a run that
    stops and goes on with another number of ranks, threads and batches ahead trains on the batches
    of one rank that never stopped, and the position that travels with a batch is all it needs."""
    streams = (Stream(str(two_streams[0]), weight=2.0), Stream(str(two_streams[1]), weight=1.5))
    whole = reader(*streams).batches(sizes, seed=seed, threads=1, depth=1)
    assert [len(batch.captions) for batch in whole] == sizes
    done, position = 0, DataPosition()
    while done < len(sizes):
        steps = data.draw(st.integers(1, len(sizes) - done))
        world = data.draw(st.integers(1, 4))
        options = {"threads": data.draw(st.integers(1, 3)), "depth": data.draw(st.integers(1, 5))}
        parts = [
            reader(*streams).batches(
                sizes[done : done + steps],
                start=position,
                first_step=done,
                rank=rank,
                world=world,
                seed=seed,
                **options,
            )
            for rank in range(world)
        ]
        for step in range(steps):
            expected = whole[done + step]
            ranks = [part[step] for part in parts]
            indices = np.concatenate([batch.indices[: batch.own] for batch in ranks])
            positions = np.concatenate([batch.positions[: batch.own] for batch in ranks])
            assert indices.tolist() == expected.indices.tolist()
            assert positions.tolist() == expected.positions.tolist()
            assert {batch.bucket for batch in ranks} == {expected.bucket}
            assert all(batch.after == expected.after for batch in ranks)
            lengths = [len(batch.captions) for batch in ranks]
            assert lengths == [
                max(len(range(expected.global_size)[rank_slice(expected.global_size, r, world)]), 1)
                for r in range(world)
            ]
        position = parts[0][-1].after
        done += steps


def test_image_caption_and_number_are_of_one_sample(
    reader: MakeReader, two_streams: tuple[Path, Path]
) -> None:
    """Numbers go on from one stream to the next, count skipped samples, and no skipped sample is
    ever handed out; all others are."""
    seen = set()
    for batch in reader(*two_streams).batches([16] * 40):
        assert batch.tensors["latent"].shape == (16, 4, 2, 2)
        assert batch.tensors["latent"].dtype == torch.float16
        assert batch.tensors["latent"][:, 0, 0, 0].tolist() == batch.indices.tolist()
        assert list(batch.captions) == [f"number {index}" for index in batch.indices]
        seen.update(batch.indices.tolist())
    assert seen == set(range(139)) - SKIPPED


def test_ranks_beyond_the_batch_have_no_samples_of_their_own(
    reader: MakeReader, two_streams: tuple[Path, Path]
) -> None:
    """Seven ranks share five samples: each is somebody's own once, and the ranks without one have
    something to compute that counts for nothing."""
    (whole,) = reader(*two_streams).batches([5])
    ranks = [reader(*two_streams).batches([5], rank=rank, world=7)[0] for rank in range(7)]
    own = [int(index) for batch in ranks for index in batch.indices[: batch.own]]
    assert own == whole.indices.tolist()
    assert sorted(batch.own for batch in ranks) == [0, 0, 1, 1, 1, 1, 1]
    assert all(len(batch.captions) == 1 for batch in ranks)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("depth", [1, 6])
def test_damage_surfaces_in_the_step_that_needs_it(
    reader: MakeReader, tmp_path: Path, threads: int, depth: int
) -> None:
    """All steps before it are handed out, however far ahead the loader read; the error names the
    shard, and nothing comes after it."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_latents(folder, [10] * 12)
    sizes = [4] * 30
    good = reader(folder).batches(sizes)
    bad = int(good[5].indices[2]) // 10
    at_fault = next(
        step for step, batch in enumerate(good) if bad in {int(i) // 10 for i in batch.indices}
    )
    (folder / name_of(bad)).unlink()
    loader = reader(folder).loader(sizes, threads=threads, depth=depth)
    seen: list[int] = []
    with pytest.raises(ShardError, match=f"{name_of(bad)} is missing"):
        seen.extend(batch.step for batch in loader)
    assert seen == list(range(at_fault))
    assert next(iter(loader), None) is None or pytest.fail("a batch after the error")


def test_a_plan_that_cannot_be_is_the_trainers_error(
    reader: MakeReader, two_streams: tuple[Path, Path]
) -> None:
    """What the plans raise surfaces too, and does not end the run as if it were complete."""

    def broken() -> object:
        yield StepPlan(0, 5)
        raise RuntimeError("no such step")

    corpus, shards = reader(*two_streams).shards()
    loader = Loader(corpus, shards, DataPosition(), broken(), seed=3, rank=0, world=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no such step"):
        list(loader)


def _threads() -> set[str]:
    return {
        thread.name.split("-")[0]
        for thread in threading.enumerate()
        if thread.name.startswith(("loader", "shards"))
    }


def test_closing_ends_the_threads_in_the_middle_of_a_run(
    reader: MakeReader, two_streams: tuple[Path, Path]
) -> None:
    """Whose batches nobody takes any more; a second time it does no harm."""
    loader = reader(*two_streams).loader([4] * 1000, depth=2)
    next(iter(loader))
    loader.close()
    assert not _threads()
    loader.close()


def test_closing_does_not_wait_for_a_store_that_hangs(
    reader: MakeReader, faulty: FaultyFolder
) -> None:
    """A stop request must not wait for a download that never ends."""
    write_latents(faulty.root, [8] * 4)
    released = threading.Event()
    faulty.fault = hangs(name_of(0), 1000, released)
    one = reader("faulty://store")
    one.policy = type(one.policy)(stall_seconds=60)
    loader = one.loader([32])
    while faulty.requests.get(name_of(0), 0) == 0:
        time.sleep(0.01)
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 10
    assert not _threads()
    released.set()


def test_it_says_what_the_next_batch_waits_for(
    reader: MakeReader, faulty: FaultyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes long is named in the log, shard and attempt, at growing intervals; then
    the batch comes, and nothing is waited for."""
    events: list[dict[str, object]] = []
    downloads: list[str] = []
    released = threading.Event()

    def note(name: str, level: int = 0, **fields: object) -> None:
        events.append({"event": name, **fields})
        if "downloading" in (waiting_for := str(fields["waiting_for"])):
            downloads.append(waiting_for)
        if len(downloads) == 3:
            released.set()

    monkeypatch.setattr(log, "event", note)
    write_latents(faulty.root, [8] * 2)
    faulty.fault = held(released)
    loader = reader("faulty://store", policy=type(reader().policy)(stall_seconds=60)).loader(
        [16], stalled_after_seconds=0.1
    )
    (batch,) = loader
    assert len(batch.captions) == 16
    assert {event["event"] for event in events} == {"data_stalled"}
    for number, event in enumerate(events):  # after 0.1, 0.2, 0.4 s
        assert float(str(event["seconds"])) >= 0.1 * 2**number
    for waiting_for in downloads[:3]:
        assert "faulty://store/shard.0000" in waiting_for
        assert "downloading, attempt 1" in waiting_for


def test_on_the_cpu_batches_pass_through(
    reader: MakeReader, two_streams: tuple[Path, Path]
) -> None:
    """No copy where there is no device to copy to."""
    batches = reader(*two_streams).batches([4, 4])
    assert list(DeviceFeed(batches, torch.device("cpu"))) == batches


def test_a_skip_list_is_honoured_without_touching_shards(
    reader: MakeReader, two_streams: tuple[Path, Path], tmp_path: Path
) -> None:
    """Adding one is another corpus, which a resume must be told to accept."""
    copy = Path(shutil.copytree(two_streams[1], tmp_path / "copy"))
    before = reader(copy).corpus()
    (copy / "skip.json").write_text(json.dumps({name_of(0): [3]}))
    after = reader(copy).corpus()
    assert len(after) == len(before) - 1
    assert after.fingerprint != before.fingerprint
