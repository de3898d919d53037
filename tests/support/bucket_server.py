"""A real server of buckets on loopback, which a test may freeze, kill and bring back."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from free_ports import free_port
from go_program import GoProgram
from s3_proxy import Exchange, Hook, nothing

_READY_SECONDS = 60.0
_PORTS = 5
"""That are tried."""
_LISTENS = "0A"
"""State of a socket in `/proc/net/tcp`."""
Json = dict[str, Any]


class BucketServer(ABC):
    """A process that runs while the `with` block does; and how its kind of store speaks, so that
    one test can be about both."""

    program: ClassVar[GoProgram]
    scheme: ClassVar[str]
    """Of a bucket's URL."""
    part_bytes: ClassVar[int]
    """The smallest part that its kind of store takes of a large file."""
    write_operation: ClassVar[str]
    """The request that a small file is written with, as errors name it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Once it has started."""
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def _arguments(self) -> Sequence[str]: ...

    def _environment(self) -> Mapping[str, str]:
        return {}

    # --- its life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()

    def start(self, first_port: int | None = None) -> None:
        """Starts it, after `kill` on the port that it had; else on a free one, before which
        `first_port` is tried."""
        if self.port:
            assert self._listens(), self._said()
            return
        # Another process may take a port between its choice and the server's use of it.
        for _ in range(_PORTS):
            self.port, first_port = first_port or free_port(), None
            if self._listens():
                return
        raise AssertionError(self._said())

    def _listens(self) -> bool:
        """Starts the process and waits until it listens; False: it ended."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.program.find(print)), *self._arguments()],
                env={**os.environ, **self._environment()},
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while self._process.poll() is None:
            if listens(self._process.pid, self.port):
                return True
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.02)
        return False

    def _said(self) -> str:
        return f"{self.program.name} does not listen: {self._log.read_text()}"

    def kill(self) -> None:
        """SIGKILL: connections break and new ones are refused."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and from the return on nothing is read or answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    # --- its buckets ----------------------------------------------------------------------------

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(4)}"
        self._make(name)
        return name

    @abstractmethod
    def _make(self, bucket: str) -> None: ...

    @abstractmethod
    def options(self) -> Json:
        """fsspec options, as a Secret would give them."""

    @abstractmethod
    def secret(self) -> dict[str, str]:
        """The same as keys of a Secret under the provider's own names."""

    @abstractmethod
    def small_parts(self) -> Json:
        """Options that make large files come in parts of `part_bytes`."""

    # --- how it speaks --------------------------------------------------------------------------

    @abstractmethod
    def throttle(self, exchange: Exchange) -> None:
        """Answers in the server's stead that there were too many requests."""

    @abstractmethod
    def fail(self, exchange: Exchange) -> None:
        """Answers in the server's stead that something in it is broken for now."""

    @abstractmethod
    def reads(self, exchange: Exchange) -> bool:
        """Whether a file's content is asked for."""

    @abstractmethod
    def ends_upload(self, exchange: Exchange) -> bool:
        """Whether the last of a file's parts is sent, or they are put together."""

    def stand_in(self) -> tuple[Hook, Hook]:
        """Hooks of a proxy that do what the real store does, and this server cannot."""
        return nothing, nothing


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on the port, by the kernel's tables (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    sockets = {
        f"socket:[{row[9]}]"
        for row in rows
        if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port
    }
    try:
        return any(_target(file) in sockets for file in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # it has ended meanwhile
        return False


def _target(file: Path) -> str:
    try:
        return str(file.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""
