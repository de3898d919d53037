"""A store over a local folder that misbehaves as it is told, through fsspec like any other.

    faulty://<name>/<path below the folder>

Faults are told to the `FaultyFolder` that is registered under the name.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

Fault = Callable[[str, int], None]
"""Is called with a file's name and how many requests for it there were before; may raise, sleep or
never return."""


def no_fault(_name: str, _before: int) -> None:
    return None


@dataclass
class FaultyFolder:
    root: Path
    fault: Fault = no_fault
    requests: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    """Bytes of a file that are sent, though it has more."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, path: str) -> bytes:
        name = path.rsplit("/", 1)[-1]
        with self.lock:
            before = self.requests.get(name, 0)
            self.requests[name] = before + 1
        self.fault(name, before)
        data = (self.root / path.split("/", 1)[-1]).read_bytes()
        return data[: self.cut.get(name)]


class FaultyStore(AbstractFileSystem):  # type: ignore[misc]
    protocol = "faulty"
    cachable = False
    folders: ClassVar[dict[str, FaultyFolder]] = {}

    def _send(self, path: str) -> bytes:
        path = str(self._strip_protocol(path))
        return self.folders[path.split("/", 1)[0]].send(path)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        return self._send(path)[start:end]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self._send(path)), "type": "file"}


fsspec.register_implementation("faulty", FaultyStore, clobber=True)


def every_nth_fails(n: int) -> Fault:
    """Over all files together."""
    count = [0]

    def fault(name: str, _before: int) -> None:
        count[0] += 1
        if count[0] % n == 0:
            raise OSError(errno.EIO, "internal error of the store")

    return fault


def throttled(times: int) -> Fault:
    """The first requests for each shard are too many for the store."""

    def fault(name: str, before: int) -> None:
        if name.endswith(".mds") and before < times:
            raise OSError(errno.EBUSY, "SlowDown: please reduce your request rate (503)")

    return fault


def hangs(name: str, requests: int, released: threading.Event) -> Fault:
    """The first requests for one file never come back."""

    def fault(asked: str, before: int) -> None:
        if asked == name and before < requests:
            released.wait()
            raise OSError(errno.EIO, "the connection was closed at last")

    return fault


def held(released: threading.Event) -> Fault:
    """Requests for shards wait, for a minute at most."""

    def fault(name: str, _before: int) -> None:
        if name.endswith(".mds"):
            released.wait(60)

    return fault
