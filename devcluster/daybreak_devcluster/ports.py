"""Picks free loopback ports for a cluster's listeners.

Ports are drawn from below the kernel's range for outgoing connections, where a client could take
one between our look and the program's start, and below the trainer's rendezvous ports.
"""

import random
import socket
from contextlib import ExitStack

_RANGE = range(10_000, 20_000)


def free_ports(count: int, host: str) -> list[int]:
    """Return `count` different ports that nobody listens on at this moment.

    Raises `OSError` where the range is exhausted.
    """
    ports: list[int] = []
    with ExitStack() as held:  # all at once, so that no port is picked twice
        for port in random.sample(_RANGE, len(_RANGE)):
            candidate = held.enter_context(socket.socket())
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((host, port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"fewer than {count} free ports on {host} in {_RANGE}")
