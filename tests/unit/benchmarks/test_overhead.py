"""The benchmark of a step's overhead runs, and compares what it says it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
CODE = """
import overhead
from daybreak_trainer.recipe import resolve
stages = [{"resolution": 16, "steps": 100, "batchSize": overhead.BATCH}]
overhead.main(turns=2, steps=3, recipe=resolve({"preset": "smoke", "stages": stages}))
"""


@pytest.mark.training
def test_three_loops_take_turns(tmp_path: Path) -> None:
    """In a process of its own, as prometheus-client wants it; Daybreak's is the trainer itself,
    which says so. The model is too small for the ratios to mean anything."""
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"event": "step_finished"' in done.stderr
    written = json.loads((tmp_path / "build" / "bench" / "overhead.json").read_text())
    assert {name: len(each["wall"]) for name, each in written["seconds"].items()} == {
        "daybreak": 2,
        "bare": 2,
        "bare with FSDP2": 2,
    }
    assert set(written["headline"]) == {
        "step_ratio",
        "step_ratio_over_fsdp",
        "step_cpu_ratio",
        "step_cpu_ratio_over_fsdp",
        "added_cpu_milliseconds",
        "added_cpu_milliseconds_over_fsdp",
    }
    assert all(value > 0 for name, value in written["headline"].items() if "ratio" in name)
