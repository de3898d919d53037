"""Histories of one run that trains, for tests of one rule at a time."""

from __future__ import annotations

from typing import Any

from simulated_history import History, spec_of

FREE = {"maxRestarts": 2, "window": "1h", "noProgressLimit": 0, "backoff": {"initial": "0s"}}
"""A failurePolicy without pauses."""


def history(nodes: int = 3, workers: dict[str, Any] | None = None, **changes: Any) -> History:
    """A run that trains: `failurePolicy` and the like as given."""
    options = {k: changes.pop(k) for k in ("queue", "skew", "readable_nodes") if k in changes}
    made = History(spec_of(workers=workers or {}, **changes), nodes, **options)
    made.operator.advance(30)
    return made


def condition(made: History, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in made.status["conditions"] if c["type"] == kind)
    return found


def crash(made: History, code: int = 1, index: int = 0, then: int = 45) -> None:
    made.pod_ends((index, code))
    made.operator.advance(then)
