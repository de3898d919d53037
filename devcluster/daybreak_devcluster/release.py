"""Which Kubernetes release the development cluster runs.

The Go module beside this package is the single source: its `go.mod` names the versions, and the
hash of its three files names the cache directory, so that an edited module never meets a binary
built from the old one.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
MODULE_DIR = Path(__file__).resolve().parent.parent / "controlplane"
_MODULE_FILES = ("go.mod", "go.sum", "main.go")


@dataclass(frozen=True)
class Release:
    """The versions that the Go module pins, and the key of its binaries in the cache."""

    kubernetes: str
    """Such as `v1.36.3`."""
    etcd: str
    """Such as `v3.6.8`."""
    go: tuple[int, int]
    """The oldest Go that can build the module, such as `(1, 26)`."""
    key: str
    """`<kubernetes version>-<hash of the module's files>`."""


def read_release(module_dir: Path = MODULE_DIR) -> Release:
    """Read the pinned versions from the Go module.

    Raises `FileNotFoundError` where the module is not there, and `ValueError` where its `go.mod`
    does not name a version.
    """
    missing = [name for name in _MODULE_FILES if not (module_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{module_dir} has no {', '.join(missing)}: the development cluster needs a checkout "
            "of Daybreak (an installed wheel does not carry the Go module)"
        )
    digest = hashlib.sha256()
    for name in _MODULE_FILES:
        content = (module_dir / name).read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    go_mod = (module_dir / "go.mod").read_text()
    kubernetes = _version(go_mod, r"^\s*k8s\.io/kubernetes\s+(v[\d.]+)", module_dir)
    etcd = _version(go_mod, r"^\s*go\.etcd\.io/etcd/server/v3\s+(v[\d.]+)", module_dir)
    go = _version(go_mod, r"^go\s+([\d.]+)", module_dir).split(".")
    return Release(
        kubernetes=kubernetes,
        etcd=etcd,
        go=(int(go[0]), int(go[1])),
        key=f"{kubernetes}-{digest.hexdigest()[:12]}",
    )


def _version(go_mod: str, pattern: str, module_dir: Path) -> str:
    found = re.search(pattern, go_mod, re.MULTILINE)
    if found is None:
        raise ValueError(f"{module_dir / 'go.mod'} names no version that matches {pattern!r}")
    return found.group(1)
