"""Ports for servers that start after their port is chosen.

They lie where no client's outgoing connection takes one between its choice and the server's start,
below the development cluster's (`daybreak_devcluster.ports`) and the trainer's (`contract`). Every
process hands out ports of a block of its own, in turn, so that neither two workers of pytest-xdist
nor two checkouts under test meet.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from functools import cache

_FIRST, _BLOCK, _END = 2_000, 200, 9_000


def free_port() -> int:
    """One that nobody has, and that this process will not choose again soon."""
    ports = _own_ports()
    for _ in range(_BLOCK):
        port = next(ports)
        if (taken := _take(port)) is not None:
            taken.close()
            return port
    raise OSError(f"all ports from {port - _BLOCK + 1} to {port} are taken")


@cache
def _own_ports() -> Iterator[int]:
    """Those of a block, over and over. Its first port is what tells other processes that it has an
    owner, for as long as this process lives."""
    for first in range(_FIRST, _END, _BLOCK):
        if (mark := _take(first)) is not None:
            mark.detach()
            return itertools.cycle(range(first + 1, first + _BLOCK))
    raise OSError(f"all blocks of ports from {_FIRST} to {_END} have an owner")


def _take(port: int) -> socket.socket | None:
    """Bound on every address, hence only where none of the machine's has it."""
    taken = socket.socket()
    try:
        taken.bind(("0.0.0.0", port))
    except OSError:
        taken.close()
        return None
    return taken
