"""Memory that a step frees is there for the next one, and not the kernel's to clear again."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
import sys
from daybreak_trainer.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
sizes = [40 << 20, 3 << 20, 100 << 20]
def use():
    for size in sizes:
        block = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(ctypes.c_void_p(block), 1, size)
        libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_memory_is_used_again() -> None:
    """143 MiB are 36,000 pages; with huge pages fewer faults, but never none."""
    assert faults("keep") < 20 <= faults("return")
