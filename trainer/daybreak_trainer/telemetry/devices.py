"""What a device could compute at best, the peak that MFU is a share of, and the memory it has.

Dense bf16 with fp32 accumulation, without sparsity, from the vendors' own papers:

- NVIDIA "A100 Tensor Core GPU Datasheet"; "A800" has the same compute
- NVIDIA "H100 Tensor Core GPU Datasheet" (SXM, PCIe, NVL; its figures are with sparsity, twice
  these), "H200 Tensor Core GPU Datasheet" (SXM, NVL), "GH200 Grace Hopper Superchip Datasheet"
- NVIDIA "Blackwell Architecture Technical Brief" (HGX B200, GB200), with sparsity, twice these
- NVIDIA "L40S", "L4", "A10", "A40" and "A30" datasheets
- NVIDIA "Ada GPU Architecture" (GeForce RTX 4090), "Ampere GA102 GPU Architecture" (GeForce
  RTX 3090, RTX A6000) and "RTX Blackwell GPU Architecture" (GeForce RTX 5090) whitepapers
- AMD "Instinct MI300X", "MI325X" and "MI250X" (one of its two dies, which is one device to PyTorch)
  datasheets

The A10G is missing because NVIDIA publishes no datasheet of it. A part of a device (MIG), a
laptop's variant or a power-limited relative is not the device of the datasheet, and has no peak.
"""

from __future__ import annotations

import re
from typing import Final

import torch

_TERA: Final = 1e12
_GIGA: Final = 10**9
_DEVICES: Final[tuple[tuple[str, float, int], ...]] = (
    (r"NVIDIA A[18]00-(SXM4|SXM|PCIE)-40GB", 312.0, 40),
    (r"NVIDIA A[18]00-(SXM4|SXM|PCIE)-80GB", 312.0, 80),
    (r"NVIDIA A[18]00 80GB PCIe", 312.0, 80),
    (r"NVIDIA H100 80GB HBM3", 989.4, 80),
    (r"NVIDIA H100 PCIe", 756.5, 80),
    (r"NVIDIA H100 NVL", 835.5, 94),
    (r"NVIDIA H200", 989.4, 141),
    (r"NVIDIA H200 NVL", 835.5, 141),
    (r"NVIDIA GH200 (480GB|120GB)", 989.4, 96),
    (r"NVIDIA GH200 144G HBM3e", 989.4, 144),
    (r"NVIDIA B200", 2250.0, 180),
    (r"NVIDIA GB200", 2500.0, 186),
    (r"NVIDIA L40S", 362.05, 48),
    (r"NVIDIA L4", 121.0, 24),
    (r"NVIDIA A10", 125.0, 24),
    (r"NVIDIA A30", 165.0, 24),
    (r"NVIDIA A40", 149.7, 48),
    (r"NVIDIA RTX A6000", 154.8, 48),
    (r"NVIDIA GeForce RTX 3090", 71.0, 24),
    (r"NVIDIA GeForce RTX 4090", 165.2, 24),
    (r"NVIDIA GeForce RTX 5090", 209.5, 32),
    (r"AMD Instinct MI300X( OAM)?", 1307.4, 192),
    (r"AMD Instinct MI325X( OAM)?", 1307.4, 256),
    (r"AMD Instinct MI250X", 191.5, 64),
)


def peak_flops_per_second(device_name: str) -> float | None:
    """Peak dense bf16 FLOP/s of a device by its name (`torch.cuda.get_device_name`, or the label
    that NVIDIA's operator makes of it, with dashes for blanks), or None where it is not known: then
    there is no MFU, rather than a guess."""
    found = _known(device_name)
    return None if found is None else found[0] * _TERA


def memory_bytes(device_name: str) -> int | None:
    """Of a device by its name, as its datasheet has it, in decimal bytes. Devices report some 7 %
    more: room for contexts, buffers of communication and fragments."""
    found = _known(device_name)
    return None if found is None else found[1] * _GIGA


def _known(device_name: str) -> tuple[float, int] | None:
    for pattern, peak, gigabytes in _DEVICES:
        if re.fullmatch(pattern.replace(" ", "[ -]"), device_name.strip()):
            return peak, gigabytes
    return None


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak of this machine's device for computing in `dtype`; None for a CPU, for what is not
    bf16, and for a device that is not known."""
    if device.type != "cuda" or dtype is not torch.bfloat16:
        return None
    return peak_flops_per_second(torch.cuda.get_device_name(device))
