"""FSDP2 over one flat mesh of all ranks: a unit per transformer block and one for the rest; a small
model is one unit."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.parallel.process_group import Rank

_ONE_UNIT_PARAMETERS = 1 << 24
"""Gathering block by block saves memory that a smaller model does not need, and its collectives
cost more than they move: with 2.6 M parameters on two cores a step took a quarter longer."""


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 where asked for, or where `auto` finds hardware for it; else fp32.

    CPUs compute bf16 correctly but without such hardware more slowly than fp32.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def shard(model: TextToImage, rank: Rank, dtype: torch.dtype) -> TextToImage:
    """Shards `model` in place; parameters stay fp32, compute runs in `dtype`, and gradients are
    reduced in fp32.

    Inputs are not cast: timesteps and rotary tables must stay fp32 (bf16 has 8 bits of mantissa).
    """
    mesh = init_device_mesh(rank.device.type, (rank.world,))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    if sum(p.numel() for p in model.parameters()) > _ONE_UNIT_PARAMETERS:
        for unit in model.denoiser.fsdp_units:
            fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model
