"""Autoencoders of a few channels with random weights: real classes, and nothing to download."""

from __future__ import annotations

from pathlib import Path

import torch

CHANNELS = 4


def save_kl(folder: Path, *, seed: int = 0, scaling: float = 0.5, shift: float = 0.25) -> Path:
    """An AutoencoderKL that halves the sides twice."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        norm_num_groups=2,
        latent_channels=CHANNELS,
        scaling_factor=scaling,
        shift_factor=shift or None,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
    return folder


def save_dc(folder: Path, *, seed: int = 0) -> Path:
    """An AutoencoderDC that halves the sides twice."""
    from diffusers import AutoencoderDC

    torch.manual_seed(seed)
    AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.41407,
    ).save_pretrained(folder)
    return folder
