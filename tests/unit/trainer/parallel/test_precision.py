"""What a rank without peers computes in; `test_process_group.py` has those with."""

from __future__ import annotations

import logging

import pytest
import torch

from daybreak_trainer.parallel.precision import compare, compute_dtype, has_bf16, name


@pytest.mark.parametrize(
    ("asked", "here", "expected"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("bf16", False, "bf16"),
        ("fp32", True, "fp32"),
    ],
)
def test_a_process_without_a_group_decides_alone(asked: str, here: bool, expected: str) -> None:
    """What is asked for is computed in, hardware or not; `auto` goes by the hardware."""
    assert name(compute_dtype(asked, here)) == expected
    assert name(compute_dtype("auto", has_bf16(torch.device("cpu")))) in ("bf16", "fp32")


@pytest.mark.parametrize(("before", "said"), [("bf16", 1), ("fp32", 0), ("", 0)])
def test_an_attempt_on_devices_without_bf16_says_so(
    before: str, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with what the run was computed in before; not of a commit that does not tell."""
    caplog.set_level(logging.INFO, "daybreak")
    compare(before, torch.float32, step=7)
    assert [record.getMessage() for record in caplog.records] == ["precision_changed"] * said
    assert all(getattr(record, "now") == "fp32" for record in caplog.records)  # noqa: B009
