"""What differs between the recipe and data that a checkpoint was made with and those of now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from daybreak_trainer.checkpoint.layout import DATA, RECIPE, Commit
from daybreak_trainer.checkpoint.storage import Storage

_SHOWN_LINES = 20
_ABSENT = "(absent)"


class ChangedError(Exception):
    """The newest checkpoint was made with another recipe, other data or another format, and nobody
    said that this is meant. The message says what changed and how to go on."""


def describe(
    checkpoint: Storage,
    commit: Commit,
    recipe_hash: str,
    recipe: Mapping[str, Any],
    dataset_fingerprint: str,
    data: Mapping[str, Any],
) -> dict[str, list[str]]:
    """By kind, `recipe` and `data`, one line for each field that differs; empty where all is as it
    was."""
    found: dict[str, list[str]] = {}
    if commit.recipe_hash != recipe_hash:
        found["recipe"] = _explained(document(checkpoint, RECIPE), recipe) or [
            f"hash: {commit.recipe_hash} -> {recipe_hash}"
        ]
    if commit.dataset_fingerprint != dataset_fingerprint:
        found["data"] = _explained(document(checkpoint, DATA), data) or [
            f"fingerprint: {commit.dataset_fingerprint} -> {dataset_fingerprint}"
        ]
    return found


def refusal(name: str, found: Mapping[str, list[str]], accepted: frozenset[str]) -> str:
    """The message of a `ChangedError`."""
    what = " and ".join(f"other {kind}" if kind == "data" else f"another {kind}" for kind in found)
    lines = [f"{name} was made with {what} than this run has:"]
    for kind, fields in found.items():
        lines += [f"  {kind}: {field}" for field in fields[:_SHOWN_LINES]]
        if len(fields) > _SHOWN_LINES:
            lines.append(f"  {kind}: and {len(fields) - _SHOWN_LINES} more")
    wanted = ", ".join(sorted(accepted | set(found)))
    lines.append(
        f"set checkpoint.acceptChanges: [{wanted}] to go on from it all the same, or give the run "
        "back what it had"
    )
    return "\n".join(lines)


def _explained(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return difference(old, new) if old and new else []


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`path: old -> new` for each field that differs, sorted by path."""
    before, after = _flat(old), _flat(new)
    return [
        f"{path}: {before.get(path, _ABSENT)} -> {after.get(path, _ABSENT)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, _ABSENT) != after.get(path, _ABSENT)
    ]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        parts = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        parts = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        return {path: json.dumps(value, default=str)} if path else {}
    return {name: text for part, item in parts for name, text in _flat(item, part).items()}


def document(checkpoint: Storage, name: str) -> dict[str, Any]:
    """A JSON object of a checkpoint. A damaged or missing file explains nothing, and is found when
    the files are verified."""
    try:
        found = json.loads(checkpoint.read(name))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
