"""What a run computes in: the same on all ranks, for FSDP gathers weights in it."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist

from daybreak_trainer.telemetry import log


def compute_dtype(precision: str, here: bool) -> torch.dtype:
    """bf16 where `recipe.precision` asks for it, or is `auto` and every rank has hardware for it;
    else fp32. `here` says whether this rank has (`has_bf16`). With `auto` a collective, where this
    process has a group.
    """
    if precision == "auto":
        everywhere = torch.tensor(int(here))
        if dist.is_initialized():
            dist.all_reduce(everywhere, dist.ReduceOp.MIN)
        return torch.bfloat16 if everywhere else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a device has hardware for it.

    CPUs compute bf16 correctly but without such hardware more slowly than fp32. Those that have
    it (AVX512-BF16, AMX) multiply matrices of the small presets two to four times as fast.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def compare(before: str, dtype: torch.dtype, step: int) -> None:
    """Logs where a run goes on in another precision than `before`, in which the commit of `step`
    was come to: with `auto` an attempt may get other devices. The commit fits all the same, for it
    is fp32. Empty is a commit that does not tell."""
    if before and before != (now := name(dtype)):
        remedy = "where runs are compared, set recipe.precision to bf16 or fp32"
        log.event(
            "precision_changed",
            level=logging.WARNING,
            step=step,
            before=before,
            now=now,
            remedy=remedy,
        )


def name(dtype: torch.dtype) -> str:
    """As recipes call it."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
