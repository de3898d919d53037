"""What tests of whole runs share beside the playground."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from daybreak_cli.playground import Playground
from daybreak_devcluster.cluster import Cluster
from daybreak_devcluster.crds import await_crd
from daybreak_trainer.checkpoint import history
from daybreak_trainer.checkpoint.storage import Storage

ROOT = Path(__file__).parents[2]
CRD = "trainingruns.daybreak.dev"
Run = dict[str, Any]


def install_rights(cluster: Cluster) -> None:
    """All of `manifests/base` but the operator: its ServiceAccount and rights, and the CRD."""
    base = ROOT / "manifests/base"
    for part in ("namespace", "crd", "rbac"):
        cluster.kubectl("apply", "-n", "daybreak-system", "-f", str(base / f"{part}.yaml"))
    await_crd(cluster, CRD)


class Bench(Playground):
    """A playground whose checkpoints are looked into."""

    def journal(self, name: str) -> list[Run]:
        """The journal of the run's last commit."""
        commits = sorted((self.folder / "checkpoints" / name).glob("run-*/attempt-*/step-*"))
        return [asdict(line) for line in history.read(Storage(str(commits[-1])))]

    def commits(self, name: str, attempt: int) -> list[int]:
        """The steps that an attempt committed at."""
        pattern = f"run-*/attempt-{attempt:04d}/step-*"
        found = (self.folder / "checkpoints" / name).glob(pattern)
        return sorted(int(folder.name.removeprefix("step-")) for folder in found)

    def origin(self, name: str, attempt: int) -> Run | None:
        """The commit that an attempt resumed from; None where it began afresh."""
        pattern = f"run-*/attempt-{attempt:04d}/ATTEMPT.json"
        (file,) = (self.folder / "checkpoints" / name).glob(pattern)
        parent: Run | None = json.loads(file.read_text()).get("parent")
        return parent
