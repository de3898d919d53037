"""Answers the operator's progress polls for all hollow workers, each at its own pod's address.

One event loop and a listening socket a worker: a socket on every address of the machine would be
open to the network, and could not stand beside other clusters' workers on the same port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daybreak_trainer.contract import HTTP_PORT

_MAX_REQUEST_BYTES = 16 * 1024


class Answers:
    """`GET /progress` of many workers."""

    def __init__(self, port: int = HTTP_PORT) -> None:
        self._port = port
        self._servers: dict[str, asyncio.Server] = {}
        self.polls = 0
        """Answered so far."""

    async def open(self, address: str, body: Callable[[], str]) -> None:
        """Answers at this address from now on. Raises OSError where it is taken."""

        def answer() -> str:
            self.polls += 1
            return body()

        self._servers[address] = await asyncio.get_running_loop().create_server(
            lambda: _Connection(answer), address, self._port
        )

    def close(self, address: str) -> None:
        """Nobody answers there any more; connections that are open stay so."""
        if (server := self._servers.pop(address, None)) is not None:
            server.close()

    def close_all(self) -> None:
        for address in list(self._servers):
            self.close(address)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as much of it as a poll needs."""

    def __init__(self, answer: Callable[[], str]) -> None:
        self._answer = answer
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            found = head.startswith(b"GET /progress ")
            body = self._answer().encode() if found else b"no such page\n"
            status = b"200 OK" if found else b"404 Not Found"
            self._transport.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(body), body)
            )
        if len(self._received) > _MAX_REQUEST_BYTES:
            self._transport.close()
