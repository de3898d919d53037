"""The operator's calls, as the API server has counted them in its audit log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def policy(user: str) -> Json:
    """An audit policy that notes this user's calls, once each, and nobody else's."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "users": [user]},
            {"level": "None"},
        ],
    }


@dataclass(frozen=True)
class Calls:
    """In one namespace, watches left out: they are a few for all runs together."""

    by_kind: Counter[str]
    """Verb and resource, such as `create jobs` and `update trainingruns/status`."""
    seconds: float
    """Time that the API server took for all of them."""

    @property
    def total(self) -> int:
        return self.by_kind.total()

    @property
    def events(self) -> int:
        return self.by_kind["create events"] + self.by_kind["patch events"]

    @property
    def writes(self) -> int:
        """All that change something, Events left out."""
        all_of_them = sum(n for kind, n in self.by_kind.items() if kind.split()[0] in _WRITES)
        return all_of_them - self.events


def calls(log: Path, namespace: str) -> Calls:
    """Reads the whole log; a last line that is not complete yet is passed over."""
    return _count(_entries(log), namespace)


def _entries(log: Path) -> Iterable[Json]:
    with log.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def _count(entries: Iterable[Json], namespace: str) -> Calls:
    found: Counter[str] = Counter()
    seconds = 0.0
    for entry in entries:
        about = entry.get("objectRef") or {}
        if entry["stage"] != "ResponseComplete" or entry["verb"] == "watch":
            continue
        if about.get("namespace") != namespace:
            continue
        part = f"/{about['subresource']}" if "subresource" in about else ""
        found[f"{entry['verb']} {about['resource']}{part}"] += 1
        seconds += _unix(entry["stageTimestamp"]) - _unix(entry["requestReceivedTimestamp"])
    return Calls(found, seconds)


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
