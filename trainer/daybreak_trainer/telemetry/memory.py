"""How much memory a rank uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MemoryUse:
    """In bytes; what a device has none of is None."""

    resident: int
    """Of the process, on the host."""
    allocated: int | None = None
    """In tensors, on the device."""
    reserved: int | None = None
    """Held by PyTorch's allocator, which is what other processes miss."""
    peak: int | None = None
    """Most in tensors since the process began."""


def memory_use(device: torch.device) -> MemoryUse:
    """Now, without waiting for the device. Linux (`/proc`, proc(5))."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    if device.type != "cuda":
        return MemoryUse(resident)
    import torch

    return MemoryUse(
        resident,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        peak=torch.cuda.max_memory_allocated(device),
    )
