"""What the compiler made outlives the pod, and a lost file costs time only."""

from __future__ import annotations

import json
import logging
import runpy
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.contract import ComputeSettings
from daybreak_trainer.parallel.compile import Artifacts, Shape, artifacts_key

SHAPE = Shape(8, 16, 2, 0, 4)
SCRIPT = Path(__file__).with_name("compiling_rank.py")


def test_a_missing_file_is_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A first attempt has nothing to load: that is as it should be."""
    assert not Artifacts(Storage(str(tmp_path)), "key").load(SHAPE)
    assert not caplog.records


@pytest.mark.parametrize("raw", [b"", b"short", b"\0" * 100], ids=["empty", "short", "wrong-hash"])
def test_a_damaged_file_is_passed_over(
    raw: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing raises; one warning names the file and what is wrong."""
    (tmp_path / "key-stage0-8x16-2-4.bin").write_bytes(raw)
    assert not Artifacts(Storage(str(tmp_path)), "key").load(SHAPE)
    (record,) = caplog.records
    assert record.getMessage() == "compile_artifacts_not_loaded"
    assert vars(record)["file"] == "key-stage0-8x16-2-4.bin"
    assert vars(record)["reason"] == "the file is damaged"


def test_a_store_that_fails_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is a file: loading fails, and so does nothing else."""
    (tmp_path / "file").touch()
    assert not Artifacts(Storage(str(tmp_path / "file")), "key").load(SHAPE)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_key_tells_apart_what_compiles_differently() -> None:
    """Recipe and compute settings, beside torch and the device."""
    cpu, plain = torch.device("cpu"), ComputeSettings()
    keys = {
        artifacts_key(recipe, compute, cpu)
        for recipe in ("a", "b")
        for compute in (plain, ComputeSettings(compile="blocks"))
    }
    assert len(keys) == 4
    assert artifacts_key("a", plain, cpu) in keys


def attempt(
    context: ForkServerContext, tmp_path: Path, name: str, shapes: list[tuple[int, int, int, int]]
) -> dict[str, Any]:
    """On a fresh disk; what it found, nothing if it died."""
    given = {"folder": tmp_path / name, "store": str(tmp_path / "kept"), "shapes": shapes}
    (tmp_path / name).mkdir()
    process = context.Process(target=runpy.run_path, args=(str(SCRIPT), given))
    process.start()
    process.join(200)
    if process.exitcode == 9:
        return {}
    assert process.exitcode == 0
    found: dict[str, Any] = json.loads((tmp_path / name / "found.json").read_text())
    return found


@pytest.mark.training
@pytest.mark.e2e
def test_the_next_attempt_compiles_nothing(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """On a fresh disk the second attempt finds all that the first compiled; where
    the file is damaged it compiles again, says so, and mends the file."""
    shapes = [(8, 16, 2, 0), (8, 16, 2, 0)]
    first = attempt(fork_server, tmp_path, "first", shapes)
    second = attempt(fork_server, tmp_path, "second", shapes)
    assert first["events"] == ["compile_artifacts_saved", "compile_warmed_up"]
    assert first["compiled"] > 0
    assert second["events"] == ["compile_warmed_up"]
    assert second["compiled"] == 0
    assert second["recompile_limit"] >= 40
    assert second["threads"] == 1, "more ranks than processors: each compiles by itself"
    kept = tmp_path / "kept" / "key-stage0-8x16-2-4.bin"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    third = attempt(fork_server, tmp_path, "third", shapes)
    assert third["events"] == ["compile_artifacts_not_loaded", *first["events"]]
    assert third["compiled"] == first["compiled"]
    assert len(kept.read_bytes()) > len(whole) // 2


@pytest.mark.training
@pytest.mark.e2e
def test_an_attempt_that_dies_has_not_compiled_in_vain(
    fork_server: ForkServerContext, tmp_path: Path
) -> None:
    """The next one goes on where it died, the one after that finds everything; each shape is a sign
    of progress."""
    shapes = [(8, 16, 2, 0), (8, 24, 2, 0), (8, 32, 2, 1)]
    assert not attempt(fork_server, tmp_path, "dies", [*shapes[:2], (0, 0, 0, 0), shapes[2]])
    second = attempt(fork_server, tmp_path, "second", shapes)
    assert second["events"] == ["compile_artifacts_saved", "compile_warmed_up"]
    assert second["told"] == [1, 2, 3]
    third = attempt(fork_server, tmp_path, "third", shapes)
    assert (third["events"], third["compiled"]) == (["compile_warmed_up"], 0)
