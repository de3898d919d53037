"""A real server of buckets on loopback, which a test may freeze, kill and bring back."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from go_program import GoProgram
from s3_proxy import Exchange, Hook, nothing

_READY_SECONDS = 20.0
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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Starts it on its port, also after `kill`."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.program.find(print)), *self._arguments()],
                env={**os.environ, **self._environment()},
                stdout=log,
                stderr=log,
            )
        name, deadline = self.program.name, time.monotonic() + _READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                text = self._log.read_text()
                assert self._process.poll() is None, f"{name} ended: {text}"
                assert time.monotonic() < deadline, f"{name} does not listen: {text}"
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: connections break and new ones are refused."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is read or answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

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
