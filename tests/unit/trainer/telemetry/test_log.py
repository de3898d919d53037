"""A log pipeline can parse every line of a rank, whoever wrote it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from daybreak_trainer.telemetry import log
from daybreak_trainer.telemetry.phases import PHASES, StepTimes
from daybreak_trainer.telemetry.step_log import StepLog

CODE = """
import logging, pathlib, warnings
from daybreak_trainer.telemetry import log
step = 0
log.configure(lambda: {"run": "prx", "attempt": 3, "rank": 1, "step": step})
log.event("training_started", world=4, url=pathlib.Path("/data"), skipped=("a", "b"))
step = 7
log.event("loss_spiked", logging.WARNING, loss=float("nan"), limit=float("inf"), step=5)
logging.getLogger("botocore").warning("%s\\n%s", "two", "lines")
warnings.warn("old and deprecated")
try:
    raise ValueError("bad shard")
except ValueError:
    logging.getLogger("daybreak").exception("shard_failed")
"""


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What a process of its own says, for logging is set up once a process."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert not done.stdout
    return [json.loads(line, parse_constant=_refused) for line in done.stderr.splitlines()]


def _refused(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_an_event_is_one_line_with_its_context_and_fields(lines: list[dict[str, Any]]) -> None:
    first = lines[0]
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "level": "info",
        "event": "training_started",
        "run": "prx",
        "attempt": 3,
        "rank": 1,
        "step": 0,
        "world": 4,
        "url": "/data",
        "skipped": ["a", "b"],
    }


def test_context_is_of_the_moment_and_an_event_s_own_field_wins(
    lines: list[dict[str, Any]],
) -> None:
    """NaN and infinity, which JSON has not, come as text."""
    spike = lines[1]
    assert (spike["level"], spike["step"]) == ("warning", 5)
    assert (spike["loss"], spike["limit"]) == ("nan", "inf")
    assert lines[2]["step"] == 7


def test_what_libraries_say_comes_the_same_way(lines: list[dict[str, Any]]) -> None:
    """One line each, whatever is in it, with the name of the logger."""
    library, warning = lines[2:4]
    assert (library["logger"], library["event"]) == ("botocore", "two\nlines")
    assert warning["logger"] == "py.warnings"
    assert "old and deprecated" in warning["event"]
    assert all(line["run"] == "prx" for line in lines)


def test_an_exception_is_in_its_event_s_line(lines: list[dict[str, Any]]) -> None:
    (failed,) = lines[4:]
    assert (failed["level"], failed["event"]) == ("error", "shard_failed")
    assert "ValueError: bad shard" in failed["exc_info"]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What Daybreak's logger writes, as it does in a rank."""
    logger, stream = logging.getLogger("daybreak"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log._Line(dict))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_steps_are_logged_now_and_then(written: io.StringIO) -> None:
    """The first at once, then at most one in the time given, with what is known of it."""
    now = 0.0
    steps = StepLog(every_seconds=30, clock=lambda: now)
    times = StepTimes(2, dict.fromkeys(PHASES, 0.123456), total_seconds=1.23456)
    for step, now in ((1, 0.0), (2, 29.0), (3, 30.0), (4, 59.0), (5, 70.0)):  # noqa: B007
        steps.step(step, loss=0.5 / step, images_per_second=12.34567, times=times)
    logged = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["step"] for line in logged] == [1, 3, 5]
    assert {line["event"] for line in logged} == {"step_finished"}
    assert logged[1]["loss"] == 0.1667
    assert logged[1]["images_per_second"] == 12.35
    assert logged[1]["step_seconds"] == 1.235
    assert logged[1]["forward_backward_seconds"] == 0.1235
    assert "gradient_norm" not in logged[1]


def test_metrics_are_served_without_torch() -> None:
    """The launcher answers probes before it spends ten seconds on importing torch."""
    code = (
        "import sys, daybreak_trainer.telemetry.server\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
