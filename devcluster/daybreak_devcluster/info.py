"""What a running development cluster says about itself."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClusterInfo:
    """Where a ready cluster is and how to reach it."""

    state_dir: Path
    kubeconfig: Path
    """The administrator's; mode 0600."""
    server: str
    """The API server's URL, on loopback."""
    binaries: Path
    """The directory with kubectl and the control plane's programs."""
    version: str
    """The Kubernetes release that the checkout pins, such as `v1.36.3`."""
    nodes: tuple[str, ...]
    supervisor_pid: int
    start_seconds: float
    """From the supervisor's start to readiness."""

    @property
    def kubectl(self) -> Path:
        """The kubectl of the same release."""
        return self.binaries / "kubectl"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "ClusterInfo":
        """The inverse of `to_json`."""
        values: dict[str, Any] = json.loads(text)
        for name in ("state_dir", "kubeconfig", "binaries"):
            values[name] = Path(values[name])
        return cls(**{**values, "nodes": tuple(values["nodes"])})
