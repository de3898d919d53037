"""Plans what a container sees as its file system.

The sandbox shows the host's files read-only, so that the checkout's environment works at its real
path. A volume may be mounted where the host has no folder, and a mount point cannot be made in
a read-only folder of the host: the nearest folder that exists is then rebuilt as an empty one with
its entries bound back into it, which costs one mount an entry. The output is bubblewrap's options;
nothing here changes the host, except that a mount point inside a volume is made in that volume.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SHM_BYTES = 64 * 1024**2  # of /dev/shm, where no volume is mounted: as container runtimes do
_NOT_BOUND = frozenset({"proc", "dev", "tmp"})


@dataclass(frozen=True)
class Mount:
    """One thing to mount: a folder or file of the host, or (without a source) a memory folder."""

    target: str
    source: Path | None = None
    writable: bool = False
    size_bytes: int | None = None
    """Limit of a memory folder."""


@dataclass(frozen=True)
class HostView:
    """What every sandbox of a node sees of the host besides `/`."""

    keep: tuple[Path, ...]
    """Shown even where they lie under /tmp, which is otherwise empty in a sandbox."""
    hide: tuple[Path, ...]
    """Folders with the cluster's own secrets: empty in a sandbox."""


def root_options(
    mounts: Iterable[Mount], view: HostView, *, writable_tmp: bool, gpus: bool
) -> list[str]:
    """bubblewrap's options that build the file system of one container; `gpus` shows it the host's
    GPUs, if there are any.

    Raises `OSError` where a folder that has to be rebuilt cannot be listed, and `ValueError` where
    a mount would hide the checkout's environment.
    """
    resolved = sorted(
        (Mount(_resolve(m.target), m.source, m.writable, m.size_bytes) for m in mounts),
        key=lambda mount: mount.target.count("/"),
    )
    for mount in resolved:
        for path in view.keep:
            if path.is_relative_to(mount.target):
                raise ValueError(
                    f"mountPath {mount.target} would hide {path}, which holds the environment that "
                    "pods run with: mount the volume elsewhere"
                )
    rebuilt = _to_rebuild(resolved)
    options = [*_host_root(), "--proc", "/proc", *_devices(gpus), "--tmpfs", "/tmp"]
    for path in view.keep:
        if path.is_relative_to("/tmp"):
            options += ["--ro-bind", str(path), str(path)]
    for folder in rebuilt:
        options += ["--tmpfs", folder, *_entries(folder)]
    for path in view.hide:
        if _is_visible(path, view):
            options += ["--tmpfs", str(path), "--remount-ro", str(path)]
    for mount in resolved:
        options += _mount_options(mount, resolved)
    targets = {mount.target for mount in resolved}
    for folder in [*rebuilt, *([] if writable_tmp else ["/tmp"]), "/dev", "/"]:
        if folder not in targets:
            options += ["--remount-ro", folder]
    return options


def _resolve(target: str) -> str:
    """Follow the host's symbolic links (/var/run) as far as the path exists there.

    /proc/self/fd-like links are of no concern: nothing is mounted under /proc.
    """
    if target == "/dev" or target.startswith("/dev/"):
        return os.path.normpath(target)
    return os.path.realpath(target)


def _host_root() -> list[str]:
    options = []
    for entry in sorted(os.scandir("/"), key=lambda entry: entry.name):
        if entry.name not in _NOT_BOUND:
            options += _bind_back(entry)
    return options


def _entries(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [
            option
            for entry in sorted(entries, key=lambda entry: entry.name)
            for option in _bind_back(entry)
        ]


def _bind_back(entry: "os.DirEntry[str]") -> list[str]:
    if entry.is_symlink():
        return ["--symlink", str(Path(entry.path).readlink()), entry.path]
    return ["--ro-bind-try", entry.path, entry.path]  # it may vanish while we look


def _devices(gpus: bool) -> list[str]:
    """A /dev without pseudo-terminals: those would need a second user namespace, in which commands
    (exec probes) could not be started later by an ordinary user."""
    options = ["--tmpfs", "/dev"]
    for path in [*(f"/dev/{name}" for name in _DEVICES), *(_gpu_devices() if gpus else ())]:
        options += ["--dev-bind-try", path, path]
    links = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        options += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
    return [*options, "--size", str(_SHM_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm"]


def _gpu_devices() -> list[str]:
    return sorted(str(path) for path in Path("/dev").glob("nvidia*"))


def _to_rebuild(mounts: Sequence[Mount]) -> list[str]:
    """The host folders in which a mount point is missing, shallow ones first."""
    folders = set()
    for mount in mounts:
        if _inside(mount.target, mounts) or mount.target.startswith(("/dev/", "/tmp/")):
            continue
        ancestor = Path(mount.target)
        while not os.path.lexists(ancestor):
            ancestor = ancestor.parent
        if str(ancestor) not in (mount.target, "/"):
            folders.add(str(ancestor))
    return sorted(folders, key=lambda folder: folder.count("/"))


def _inside(target: str, mounts: Sequence[Mount]) -> Mount | None:
    """The innermost other mount that the target lies in."""
    return max(
        (mount for mount in mounts if target.startswith(mount.target.rstrip("/") + "/")),
        key=lambda mount: len(mount.target),
        default=None,
    )


def _is_visible(path: Path, view: HostView) -> bool:
    if not path.is_relative_to("/tmp"):
        return True
    return any(path.is_relative_to(kept) for kept in view.keep)


def _mount_options(mount: Mount, mounts: Sequence[Mount]) -> list[str]:
    outer = _inside(mount.target, mounts)
    if outer is not None and outer.source is not None:
        _make_mount_point(outer.source / os.path.relpath(mount.target, outer.target), mount)
    if mount.source is None:
        size = [] if mount.size_bytes is None else ["--size", str(mount.size_bytes)]
        return [*size, "--perms", "0777", "--tmpfs", mount.target]
    return ["--bind" if mount.writable else "--ro-bind", str(mount.source), mount.target]


def _make_mount_point(path: Path, mount: Mount) -> None:
    if path.exists():
        return
    if mount.source is not None and mount.source.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    else:
        path.mkdir(parents=True)
