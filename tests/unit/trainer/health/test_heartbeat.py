"""A rank's signs of life, as another process reads them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from daybreak_trainer.health.heartbeat import DETAIL_BYTES, Heartbeat, Phase, beat_file, read


def test_what_a_rank_says_is_read(tmp_path: Path) -> None:
    """Phase, step, what it waits for, its process and when it got on last."""
    heartbeat = Heartbeat(tmp_path, 3)
    first = read(tmp_path, 3)
    assert first is not None
    assert (first.local_rank, first.pid, first.phase, first.step) == (3, os.getpid(), "starting", 0)
    heartbeat.enter(Phase.DATA, "waiting for shard.00042.mds")
    heartbeat.step(1200)
    said = read(tmp_path, 3)
    assert said is not None
    assert (said.phase, said.detail) == ("waiting for data", "waiting for shard.00042.mds")
    assert (said.step, said.steps, said.marks) == (1200, 1, 2)
    assert first.progressed_at < said.progressed_at <= time.monotonic()


def test_a_rank_that_has_said_nothing_is_no_rank(tmp_path: Path) -> None:
    """No file yet, or one that is just being made."""
    assert read(tmp_path, 0) is None
    Heartbeat(tmp_path, 0)
    os.truncate(beat_file(tmp_path, 0), 0)
    assert read(tmp_path, 0) is None


def test_talk_is_no_progress(tmp_path: Path) -> None:
    """Only a new phase since the last step, a step, or a counter that moved counts."""
    heartbeat = Heartbeat(tmp_path, 0)

    def marks() -> int:
        beat = read(tmp_path, 0)
        assert beat is not None
        return beat.marks

    heartbeat.enter(Phase.DATA)
    heartbeat.enter(Phase.STEP)
    assert marks() == 2
    for _ in range(100):
        heartbeat.enter(Phase.DATA, "again")
        heartbeat.enter(Phase.STEP)
        heartbeat.says("still here")
        heartbeat.moved(0)
    assert marks() == 2
    heartbeat.step(1)
    heartbeat.enter(Phase.DATA)
    heartbeat.moved(17)
    heartbeat.moved(17)
    assert marks() == 5


def test_a_long_detail_is_cut_between_characters(tmp_path: Path) -> None:
    """The file has a fixed size."""
    Heartbeat(tmp_path, 0).says("ä" * DETAIL_BYTES)
    beat = read(tmp_path, 0)
    assert beat is not None
    assert beat.detail == "ä" * (DETAIL_BYTES // 2)


def test_a_long_call_counts_only_while_its_counter_moves(tmp_path: Path) -> None:
    """The helper for exports and evaluations never makes progress up."""
    heartbeat, looks, enough = Heartbeat(tmp_path, 0), [0], Event()

    def images() -> int:
        looks[0] += 1
        if looks[0] == 20:
            enough.set()
        return min(looks[0], 5)

    with heartbeat.counting(images, every_seconds=0.001):
        assert enough.wait(10)
    beat = read(tmp_path, 0)
    assert beat is not None
    assert beat.marks == 5


def test_no_half_of_a_write_is_read(tmp_path: Path) -> None:
    """Four threads write what fits together while another reads."""
    heartbeat, over = Heartbeat(tmp_path, 0), Event()

    def write(letter: str) -> None:
        while not over.is_set():
            heartbeat.says(letter * DETAIL_BYTES)

    writers = [Thread(target=write, args=(letter,)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    try:
        for _ in range(2000):
            beat = read(tmp_path, 0)
            assert beat is not None
            assert len(set(beat.detail)) <= 1
    finally:
        over.set()
        for writer in writers:
            writer.join()


def test_a_beat_costs_little(tmp_path: Path) -> None:
    """Under 5 µs: three of them a step are nothing. The best of many rounds, since other processes
    share the cores."""
    heartbeat = Heartbeat(tmp_path, 0)
    best = min(_microseconds(heartbeat) for _ in range(50))
    print(f"a beat takes {best:.2f} µs")
    assert best < 5


def _microseconds(heartbeat: Heartbeat) -> float:
    started = time.perf_counter()
    for step in range(200):
        heartbeat.enter(Phase.DATA)
        heartbeat.step(step)
    return (time.perf_counter() - started) / 400 * 1e6


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_fits(tmp_path: Path, phase: Phase) -> None:
    """Its name is not cut."""
    Heartbeat(tmp_path, 0).enter(phase)
    beat = read(tmp_path, 0)
    assert beat is not None
    assert beat.phase == phase
