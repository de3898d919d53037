"""Keeps the C library from giving memory back between the steps of a rank that computes on CPUs.

A step frees what the next one takes again, in the same sizes. By default glibc returns large blocks
to the kernel, which then clears every page anew: some 10,000 page faults a step, a twentieth of a
small model's time.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of `mallopt(3)`."""
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """From now on this process keeps up to 1 GiB that it freed; False where the C library is not
    glibc and knows no such wish."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(what, _KEPT_BYTES) for what in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
