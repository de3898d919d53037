"""The shards that a node has downloaded, shared by all processes on it and kept within a limit.

    <folder>/<index hash>/shard.00017.mds                        whole and verified
    <folder>/<index hash>/shard.00017.mds.partial-<pid>-<n>-<bytes>   being written
    <folder>/.locks/<nnn>                                        who downloads which shard
    <folder>/.locks/room                                         who counts and evicts

Files tell everything, so a kill at any point needs no repair. What a process holds it holds by
`flock`, which the kernel drops with the process: the lock of the shard it downloads, its partial
file (without an owner it is a leftover, and removed), and a shared lock of every shard it reads
(such a file is not evicted). A partial file counts with the size it will have, so two processes
cannot fill the same room. A shard has its final name only after its size and hash were compared.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.retry import StoppedError
from daybreak_trainer.telemetry import log

_LOCKS = ".locks"
_SLOTS = 4096
"""Shards share this many locks: the files are never removed, which could not be done safely."""
_PARTIAL = ".partial-"
_POLL_SECONDS = 0.02


class Partial:
    """A file that this process is writing; it is gone unless it gets a final name."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def share(self) -> int:
        """A descriptor to read it with, which keeps it in the cache once it was published."""
        assert self._descriptor is not None  # neither published nor discarded yet
        return os.dup(self._descriptor)

    def rename(self, final: Path) -> None:
        """Who reads it already keeps it in the cache from now on."""
        assert self._descriptor is not None  # as above
        self.path.replace(final)
        with suppress(BlockingIOError):  # being evicted this moment; it stays readable all the same
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._unlock()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used: float
    """When it was last opened or let go of, by the file's access time, which only we set."""


class NodeCache:
    """One process's view of the node's cache; safe to use from several threads."""

    def __init__(self, folder: Path, limit_bytes: int | None, counters: DataCounters) -> None:
        self._folder, self.limit_bytes, self._counters = folder, limit_bytes, counters
        self._numbers = itertools.count()
        self._said_exceeded = False
        self.let_go: Callable[[], None] = lambda: None
        """Closes the shards that this process keeps open without need, so they can be evicted."""
        (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
        with self._room(threading.Event()):
            self._keep_limit(0)

    def path(self, dataset: str, name: str) -> Path:
        return self._folder / dataset / name

    @contextmanager
    def alone(self, path: Path, stopped: threading.Event) -> Iterator[None]:
        """While nobody else on the node works on getting this shard.

        Raises:
            StoppedError: `stopped` was set before the others were done.
        """
        slot = xxhash.xxh64(str(path.relative_to(self._folder))).intdigest() % _SLOTS
        with self._locked(f"{slot:03x}", stopped):
            yield

    def open(self, path: Path) -> int | None:
        """Descriptor of a cached shard, which stays in the cache until it is closed; None where it
        is not there."""
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    touch(descriptor)
                    return descriptor
            except BlockingIOError:
                time.sleep(_POLL_SECONDS)  # it is being evicted
            os.close(descriptor)

    def partial(
        self, final: Path, size: int, stopped: threading.Event, *, patient: bool = True
    ) -> Partial:
        """A place to write `size` bytes to. Makes room for them first, and waits for it while other
        downloads are under way, for they become shards that can be evicted; not if `patient` is
        false, as for who holds a partial file already.

        Raises:
            OSError: the volume has none.
            StoppedError: `stopped` was set.
        """
        final.parent.mkdir(parents=True, exist_ok=True)
        name = f"{final.name}{_PARTIAL}{os.getpid()}-{next(self._numbers)}-{size}"
        path = final.with_name(name)
        while True:
            with self._room(stopped):
                if self._keep_limit(size, patient=patient):
                    flags = os.O_CREAT | os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC
                    descriptor = os.open(path, flags, 0o644)
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return Partial(path, descriptor)
            if stopped.wait(_POLL_SECONDS):
                raise StoppedError

    def publish(self, partial: Partial, final: Path, stopped: threading.Event) -> None:
        """Gives a file that is whole and verified its final name; not while somebody counts, who
        would see it under neither of its names.

        Raises:
            StoppedError: `stopped` was set.
        """
        with self._room(stopped):
            partial.rename(final)

    def make_room(self, size: int, stopped: threading.Event) -> int:
        """Removes what was not used for longest until `size` bytes are free; returns how many."""
        with self._room(stopped):
            return self._evict(self._entries(), size)

    def _keep_limit(self, size: int, *, patient: bool = False) -> bool:
        """Makes room for `size` bytes; False where there is none before a download has ended."""
        entries = self._entries()
        if self.limit_bytes is None:
            return True
        excess = sum(entry.size for entry in entries) + size - self.limit_bytes
        if excess <= 0 or (missing := excess - self._evict(entries, excess)) <= 0:
            return True
        if patient and any(_PARTIAL in entry.path.name for entry in entries):
            return False
        if not self._said_exceeded:
            log.event(
                "cache_limit_exceeded",
                logging.WARNING,
                limit_bytes=self.limit_bytes,
                used_bytes=self.limit_bytes + missing,
                reason="every shard in the cache is being read; said once",
            )
        self._said_exceeded = True
        return True

    def _evict(self, entries: list[_Entry], wanted: int) -> int:
        freed = 0
        for attempt in range(2):
            if attempt:
                self.let_go()
            for entry in sorted(entries, key=lambda entry: entry.used):
                if freed >= wanted:
                    break
                if _PARTIAL not in entry.path.name and _removed(entry.path):
                    freed += entry.size
            if freed >= wanted:
                break
        self._counters.add("evicted_bytes", freed)
        return freed

    def _entries(self) -> list[_Entry]:
        """All files of the cache, after leftovers were removed. Only where `_room` is held: a
        partial file is made and locked under it."""
        entries = []
        for folder in self._folder.iterdir():
            if folder.name == _LOCKS or not folder.is_dir():
                continue
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    if _PARTIAL in path.name and _removed(path):
                        continue
                    stat = path.stat()
                    size = max(stat.st_size, _promised(path.name))
                    entries.append(_Entry(path, size, stat.st_atime))
        return entries

    @contextmanager
    def _room(self, stopped: threading.Event) -> Iterator[None]:
        with self._locked("room", stopped):
            yield

    @contextmanager
    def _locked(self, name: str, stopped: threading.Event) -> Iterator[None]:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        descriptor = os.open(self._folder / _LOCKS / name, flags, 0o644)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if stopped.wait(_POLL_SECONDS):
                    raise StoppedError
            yield
        finally:
            os.close(descriptor)


def touch(descriptor: int) -> None:
    """Marks a file as just used, and leaves the time of its last change alone."""
    os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


def _promised(name: str) -> int:
    _, separator, rest = name.partition(_PARTIAL)
    return int(rest.rsplit("-", 1)[-1]) if separator else 0


def _removed(path: Path) -> bool:
    """Removes a file unless somebody holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks only what may be written
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
