"""The settings of an attempt, for tests that care about a few of them."""

from __future__ import annotations

from typing import Any

from daybreak_trainer.contract import RunSettings, StreamSettings


def run_settings(**changes: Any) -> RunSettings:
    """Of the first attempt of a run on one node, but for `changes`."""
    given: dict[str, Any] = {
        "name": "run",
        "namespace": "ns",
        "uid": "u",
        "attempt": 1,
        "nodes": 1,
        "master_address": "127.0.0.1",
        "master_port": 20000,
        "recipe_hash": "r",
        "streams": (StreamSettings(url="d", role="data-0"),),
        "checkpoint_url": "c",
    }
    return RunSettings(**given | changes)
