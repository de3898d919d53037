"""A store on this machine that does something else at a chosen request: dies, fails, waits.

`gated://<folder>` is known to fsspec once this module is imported. It behaves like a store that
shows files while they are written, the least that a store can promise.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec.spec import AbstractFileSystem

Operation = Literal["open", "write", "close", "closed", "remove", "removed", "read"]


@dataclass
class Rule:
    """Acts at requests whose operation and path fit, after `skip` of them, `times` times."""

    operation: Operation
    match: str
    action: Callable[[], object]
    skip: int = 0
    times: int = 1


RULES: list[Rule] = []
"""Of this process; whoever adds one clears it."""
_LOCK = threading.Lock()


def kill() -> None:
    """As the kernel does it: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    """The disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pass(operation: Operation, path: str) -> None:
    due: list[Callable[[], object]] = []
    with _LOCK:
        for rule in RULES:
            if rule.operation == operation and rule.match in path and rule.times:
                if rule.skip:
                    rule.skip -= 1
                else:
                    rule.times -= 1
                    due.append(rule.action)
    for action in due:
        action()


class _File:
    def __init__(self, path: str, mode: str) -> None:
        self._path = path
        _pass("open", path)
        self._file = open(path, mode)  # noqa: PTH123, SIM115 (closed by its user)

    def write(self, data: Any) -> int:
        _pass("write", self._path)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def discard(self) -> None:
        self._file.close()

    def close(self) -> None:
        _pass("close", self._path)
        self._file.close()
        _pass("closed", self._path)


class GatedFileSystem(AbstractFileSystem):  # type: ignore[misc]
    protocol = "gated"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("gated://").rstrip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        folder = Path(self._strip_protocol(path))
        if folder.is_file():
            return [self.info(str(folder))] if detail else [str(folder)]
        found = [self.info(str(entry)) for entry in folder.iterdir()]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        found = Path(self._strip_protocol(path))
        kind = "directory" if found.is_dir() else "file"
        return {"name": str(found), "size": found.stat().st_size, "type": kind}

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._strip_protocol(path)
        if "w" not in mode:
            _pass("read", path)
            return open(path, mode)  # noqa: PTH123
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return _File(path, mode)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        _pass("read", path)
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        Path(path1).rename(path2)

    def rm_file(self, path: str) -> None:
        self.rm(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        found = Path(self._strip_protocol(path))
        if not found.exists():
            raise FileNotFoundError(path)
        for file in sorted(found.rglob("*")) if found.is_dir() else [found]:
            _pass("remove", str(file))
            file.unlink()
            _pass("removed", str(file))
        if found.is_dir():
            shutil.rmtree(found)


fsspec.register_implementation("gated", GatedFileSystem, clobber=True)
