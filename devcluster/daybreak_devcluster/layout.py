"""Where a development cluster keeps its files.

Everything one cluster writes lies under one state directory, so that stopping it can remove all
of it and two checkouts do not collide.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OUT_OF_MEMORY = "out-of-memory"
"""In a container's folder: what kills it now is its memory limit."""


@dataclass(frozen=True)
class Layout:
    """The paths inside one state directory."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives; also marks the directory as ours."""
        return self.root / "devcluster.lock"

    @property
    def info(self) -> Path:
        """What a running cluster says about itself, as JSON; written once it is ready."""
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig (mode 0600)."""
        return self.root / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Certificates, keys and the components' own kubeconfigs."""
        return self.root / "pki"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"

    @property
    def etcd(self) -> Path:
        """etcd's data."""
        return self.root / "etcd"

    @property
    def nodes(self) -> Path:
        """The node agents' state: pods, volumes, container logs."""
        return self.root / "nodes"

    @property
    def restart(self) -> Path:
        """Names of programs that the supervisor is to start anew, one a line."""
        return self.root / "restart"

    @property
    def kubectl_cache(self) -> Path:
        """Discovery results that kubectl would otherwise leave in the user's home."""
        return self.root / "kubectl-cache"

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.logs / f"{name}.log"


def default_state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """`$DAYBREAK_STATE_DIR`, or `build/devcluster` under the working directory."""
    named = (os.environ if environ is None else environ).get("DAYBREAK_STATE_DIR")
    return Path(named).resolve() if named else Path.cwd() / "build" / "devcluster"
