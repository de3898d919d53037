"""The journal travels whole with every checkpoint, and stays cheap however long the run."""

from __future__ import annotations

import gzip
import json
import math
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.history import HistoryLine, Journal
from daybreak_trainer.checkpoint.layout import HISTORY
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import Validation

lines = st.builds(
    HistoryLine,
    step=st.integers(0, 10**9),
    position=st.integers(0, 10**12),
    size=st.integers(1, 10**6),
    samples=st.integers(0, 2**64 - 1).map(lambda value: f"{value:016x}"),
    loss=st.floats(allow_nan=False, allow_infinity=False),
    world=st.integers(1, 4096),
)


@given(st.lists(lines, max_size=5), st.lists(lines, max_size=5), st.integers(0, 2500))
def test_what_was_noted_is_read(
    before: list[HistoryLine], after: list[HistoryLine], repeats: int
) -> None:
    """Over restarts and blocks, floats to the bit; and the file is plain JSON lines in gzip."""
    checkpoint = Storage("memory://journal")
    many = before * (repeats // 5)
    checkpoint.write(HISTORY, Journal(many).encode())
    journal = Journal.decode(checkpoint.read(HISTORY))
    for line in after:
        journal.append(line)
    checkpoint.write(HISTORY, journal.encode())
    assert history.read(checkpoint) == list(journal) == many + after
    if many + after:
        text = gzip.decompress(checkpoint.read(HISTORY)).splitlines()
        assert [json.loads(line) for line in text] == [asdict(line) for line in many + after]


def test_evaluations_lie_among_the_steps() -> None:
    """And neither is taken for the other, packed or not."""
    steps = [HistoryLine(step, 0, 8, "0", 0.5, 1) for step in range(1, 4)]
    found = [Validation(step=step, loss=0.25, bins={"0-0.3": 0.125}) for step in (1, 3)]
    journal = Journal.decode(Journal([steps[0], found[0], steps[1]]).encode())
    journal.append(steps[2])
    journal.append(found[1])
    assert list(journal) == steps
    assert list(journal.evaluations()) == found


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number(loss: float) -> None:
    """The file stays JSON for every reader, and the loss is what it was."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    raw = Journal([HistoryLine(1, 0, 8, "0", loss, 1)]).encode()
    json.loads(gzip.decompress(raw), parse_constant=refuse)
    (line,) = Journal.decode(raw)
    assert repr(line.loss) == repr(loss)


def test_a_long_run_costs_a_commit_little() -> None:
    """50,000 steps are a MB and a half, and encoding them again takes a fraction of a step: only
    the last block is compressed anew."""
    journal = Journal()
    for step in range(1, 50_001):
        sample = f"{step * 0x9E3779B97F4A7C15 % 2**64:016x}"
        journal.append(HistoryLine(step, step * 1024, 1024, sample, 1 / (step + 0.1), 64))
    mark = time.perf_counter()
    encoded = journal.encode()
    seconds = time.perf_counter() - mark
    assert len(encoded) < 40 * 50_000
    assert seconds < 0.1
