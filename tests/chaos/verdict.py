"""Whether a run came through: all of its samples, each once, and a ledger that adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

Json = dict[str, Any]
_IDLE = ("queue", "suspended", "preparation", "restart")
"""Accounts of time in which no devices are held."""


def wrong(
    run: Json,
    journal: Sequence[tuple[int, int, int, str]],
    steps: int,
    batch: int,
    expected: Callable[[int], str],
) -> list[str]:
    """What is wrong with a run that should have trained so many steps of that batch; a sentence
    for each. `expected` is the signature of the samples of a step, from 1."""
    status = run.get("status", {})
    found = []
    if status.get("phase") != "Complete":
        found.append(f"its phase is {status.get('phase')}: {_said(status)}")
    return [*found, *_of_journal(journal, steps, batch, expected), *_of_ledger(run)]


def _of_journal(
    journal: Sequence[tuple[int, int, int, str]],
    steps: int,
    batch: int,
    expected: Callable[[int], str],
) -> list[str]:
    if len(journal) != steps:
        return [f"its lineage has {len(journal)} steps of {steps}"]
    for number, (step, position, size, samples) in enumerate(journal, start=1):
        if (step, position, size) != (number, (number - 1) * batch, batch):
            return [f"entry {number} is step {step}, {size} samples from {position} on"]
        if samples != expected(number):
            return [f"step {step} trained on other samples"]
    return []


def _of_ledger(run: Json) -> list[str]:
    status = run.get("status", {})
    ledger = status.get("ledger")
    if ledger is None:
        return ["it has no ledger"]
    lost, productive = ledger["lostSeconds"], ledger["productiveSeconds"]
    wall = _seconds(run["metadata"]["creationTimestamp"], ledger["accountedUntil"])
    found = []
    if productive + sum(lost.values()) != wall:
        accounted = productive + sum(lost.values())
        found.append(f"its ledger accounts for {accounted} s of {wall} s")
    held = wall - sum(lost.get(name, 0) for name in _IDLE)
    if ledger["heldSeconds"] != held:
        found.append(f"it held devices for {ledger['heldSeconds']} s, by its accounts for {held} s")
    if "completionTime" in status:
        end = _seconds(run["metadata"]["creationTimestamp"], status["completionTime"])
        # Of a failed run the last workers' end counts as well.
        if wall < end or (wall > end and status["phase"] == "Complete"):
            found.append(f"its ledger ends after {wall} s, the run after {end} s")
    return found


def _seconds(start: str, end: str) -> int:
    return int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _said(status: Json) -> str:
    conditions = status.get("conditions", [])
    true = [c for c in conditions if c["type"] == "Failed" and c["status"] == "True"]
    return str(true[0]["message"]) if true else "it did not end"
