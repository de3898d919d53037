"""Owns a state directory: one cluster at a time, and what a dead one left is cleared away.

The owner holds a file lock, which the kernel releases however the owner ends. So a held lock means
a live cluster, and a free lock beside other files means leftovers; no process ID is ever guessed.
"""

import fcntl
import os
import shutil
from pathlib import Path

from daybreak_devcluster.layout import Layout


class StateDirError(Exception):
    """The state directory cannot be used; the message says why and what to do."""


class OwnedStateDir:
    """A state directory whose lock this process holds. Made by `take`."""

    def __init__(self, layout: Layout, descriptor: int, stale: bool) -> None:
        self.layout = layout
        self.was_stale = stale
        self._descriptor = descriptor

    def remove(self) -> None:
        """Delete the directory and give up the lock."""
        shutil.rmtree(self.layout.root)
        os.close(self._descriptor)

    def release(self) -> None:
        """Give up the lock and leave the files, for a look at the logs."""
        os.close(self._descriptor)


def take(root: Path) -> OwnedStateDir:
    """Lock the directory, empty but for the lock, for a new cluster.

    Raises `StateDirError` where a cluster runs there, or where the directory holds files that no
    development cluster made.
    """
    layout = Layout(root)
    if root.exists() and not layout.lock.exists() and (not root.is_dir() or any(root.iterdir())):
        raise StateDirError(
            f"{root} exists and is not a development cluster's state directory; "
            "name an empty or new one (--state-dir or $DAYBREAK_STATE_DIR)"
        )
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StateDirError(
            f"a development cluster already runs in {root}; stop it with `daybreak down`"
        ) from None
    if not _is_same_file(layout.lock, descriptor):  # its owner removed it under our hands
        os.close(descriptor)
        return take(root)
    leftovers = [path for path in root.iterdir() if path != layout.lock]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return OwnedStateDir(layout, descriptor, stale=bool(leftovers))


def live_owner(root: Path) -> int | None:
    """The process ID of the supervisor that holds the lock, or None where nobody does."""
    lock = Layout(root).lock
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 32) or 0) or None
    finally:
        os.close(descriptor)
    return None


def clear_leftovers(root: Path) -> bool:
    """Remove what a dead cluster left; returns whether there was anything.

    Raises `StateDirError` as `take` does.
    """
    if not root.exists():
        return False
    take(root).remove()
    return True


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
