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
from daybreak_trainer.parallel.compile import Artifacts, artifacts_key

SCRIPT = Path(__file__).with_name("compiling_rank.py")


def test_a_missing_file_is_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A first attempt has nothing to load: that is as it should be."""
    assert not Artifacts(Storage(str(tmp_path)), "key").load()
    assert not caplog.records


@pytest.mark.parametrize("raw", [b"", b"short", b"\0" * 100], ids=["empty", "short", "wrong-hash"])
def test_a_damaged_file_is_passed_over(
    raw: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing raises; one warning names the file and what is wrong."""
    (tmp_path / "key.bin").write_bytes(raw)
    assert not Artifacts(Storage(str(tmp_path)), "key").load()
    (record,) = caplog.records
    assert record.getMessage() == "compile_artifacts_not_loaded"
    assert vars(record)["file"] == "key.bin"
    assert vars(record)["reason"] == "the file is damaged"


def test_a_store_that_fails_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is a file: loading fails, and so does nothing else."""
    (tmp_path / "file").touch()
    assert not Artifacts(Storage(str(tmp_path / "file")), "key").load()
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


@pytest.mark.training
@pytest.mark.e2e
def test_the_next_attempt_compiles_nothing(fork_server: ForkServerContext, tmp_path: Path) -> None:
    """On a fresh disk the second attempt finds all that the first compiled; where
    the file is damaged it compiles again, says so, and mends the file."""

    def attempt(name: str) -> dict[str, Any]:
        given = {"folder": tmp_path / name, "store": str(tmp_path / "kept")}
        given["folder"].mkdir()
        process = fork_server.Process(target=runpy.run_path, args=(str(SCRIPT), given))
        process.start()
        process.join(200)
        assert process.exitcode == 0
        found: dict[str, Any] = json.loads((given["folder"] / "found.json").read_text())
        return found

    first, second = attempt("first"), attempt("second")
    assert first["events"] == ["compile_warmed_up", "compile_artifacts_saved"]
    assert first["compiled"] > 0
    assert second["events"] == ["compile_warmed_up"]
    assert second["compiled"] == 0
    assert second["recompile_limit"] >= 40
    assert second["threads"] == 1, "more ranks than processors: each compiles by itself"
    kept = tmp_path / "kept" / "key.bin"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    third = attempt("third")
    assert third["events"] == ["compile_artifacts_not_loaded", *first["events"]]
    assert third["compiled"] == first["compiled"]
    assert len(kept.read_bytes()) > len(whole) // 2
