"""Which attention kernel runs is torch's own answer."""

from __future__ import annotations

import logging

import pytest
import torch

from daybreak_trainer.parallel.attention import AttentionCall, log_backend

CPU = torch.device("cpu")


def test_the_backend_is_logged_with_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """A trained masked call in fp32 on a CPU runs its flash kernel, and the line says of what."""
    caplog.set_level(logging.INFO, "daybreak")
    call = AttentionCall(heads=2, head_dim=16, queries=16, keys=24, masked=True)
    assert log_backend(call, CPU, torch.float32) == "flash_attention"
    (record,) = caplog.records
    assert record.getMessage() == "attention_backend_chosen"
    said = {name: getattr(record, name) for name in ("backend", "dtype", "head_dim", "masked")}
    assert said == {
        "backend": "flash_attention",
        "dtype": "float32",
        "head_dim": 16,
        "masked": True,
    }


def test_a_switched_off_kernel_is_not_named() -> None:
    """The answer follows what torch would do now."""
    call = AttentionCall(heads=2, head_dim=16, queries=16, keys=24, masked=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert log_backend(call, CPU, torch.float32) == "math"
