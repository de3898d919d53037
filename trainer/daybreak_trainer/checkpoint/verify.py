"""Reads a checkpoint's files back and compares them with what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from daybreak_trainer.checkpoint.layout import FileRecord
from daybreak_trainer.checkpoint.storage import Storage

_THREADS = 8
"""Hashing and reading release the interpreter's lock, and one stream from a bucket is slow."""


def damages(
    checkpoint: Storage, files: Mapping[str, FileRecord], names: Sequence[str]
) -> list[str]:
    """One sentence for each of the named files that is not what was written, in their order.

    Raises:
        StorageError: the store cannot be read, which says nothing about the files.
    """

    def damage(name: str) -> str | None:
        return _damage(checkpoint, name, files[name])

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        return [problem for problem in pool.map(damage, names) if problem]


def _damage(checkpoint: Storage, name: str, expected: FileRecord) -> str | None:
    try:
        size = checkpoint.size(name)
        if size != expected.size:
            return f"file {name} has {size} bytes instead of {expected.size}"
        found = checkpoint.record(name)
    except FileNotFoundError:
        return f"file {name} is missing"
    if found.xxh64 != expected.xxh64:
        return f"file {name} is damaged (xxh64 {found.xxh64} instead of {expected.xxh64})"
    return None


def missing_or_cut(checkpoint: Storage, files: Mapping[str, FileRecord]) -> list[str]:
    """As `damages`, by size alone: what a store says at once about files that were just written."""

    def problem(name: str) -> str | None:
        return checkpoint.verify(name, files[name])

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        return [found for found in pool.map(problem, sorted(files)) if found]
