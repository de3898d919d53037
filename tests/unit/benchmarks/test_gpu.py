"""The GPU benchmark works before anybody pays for the machine that it is for."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script, imported as what it is when it runs."""
    sys.path.insert(0, str(SCRIPT.parent))
    specification = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["gpu"] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


def test_a_dry_run_goes_through_all_of_it(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tiny model on the CPU: a row for each size and way to compute, with the largest batch that
    is allowed, and no MFU, for a CPU has no peak. It leaves no page of results."""
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--dry-run"]) == 0
    written = json.loads((tmp_path / "build" / "bench" / "gpu.json").read_text())
    rows = written["rows"]
    tricks = [trick for trick in gpu.tricks(2) if trick != "none"]
    assert [(row["tokens"], row["checkpointing"], row["trick"]) for row in rows] == [
        (tokens, again, trick)
        for tokens in (4, 16)
        for again, trick in (("none", "none"), ("blocks", "none"), *(("none", t) for t in tricks))
    ]
    for row in rows:
        assert row["batch"] == 4
        assert row["images_per_second"] == pytest.approx(4 / row["step_seconds"])
        assert row["mfu"] is None
        assert row["peak_gib"] is None
    assert written["headline"] == {}
    assert {"device", "driver", "torch", "commit", "power limit"} <= set(written["conditions"])
    assert "| 16 | none | none | blocks |" in capsys.readouterr().out
    assert not (tmp_path / "benchmarks").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_it_measures_nothing_and_says_so(
    gpu: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("no GPU here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5, 8, 48, 100, 1000])
@pytest.mark.parametrize("guess", [1, 16])
def test_the_largest_batch_that_fits_is_found(gpu: ModuleType, room: int, guess: int) -> None:
    """To a factor of 1.5, whatever was guessed; never one that does not fit."""
    most = 64
    found = gpu.largest_batch(lambda batch: batch <= room, most, guess)
    assert found <= min(room, most)
    assert found * 1.5 >= min(room, most) or found + 1 > room
