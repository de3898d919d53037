"""What the operator keeps in memory of what the watches bring."""

from __future__ import annotations

import json
from typing import Any

from daybreak_operator.cache import Cache
from daybreak_operator.observation import PodView

WIDE = {f"example.com/{number}": "x" * 60 for number in range(1000)}


def test_what_users_put_on_thousands_of_pods_is_not_kept() -> None:
    """A pod takes as little memory as what is read of it, and that is all there."""
    labels = {"daybreak.dev/run": "r", "daybreak.dev/attempt": "3"}
    pod: dict[str, Any] = {
        "metadata": {
            "name": "r-3-7-abcde",
            "namespace": "n",
            "uid": "u",
            "labels": WIDE | labels | {"batch.kubernetes.io/job-completion-index": "7"},
            "annotations": WIDE,
            "finalizers": list(WIDE),
            "managedFields": [WIDE],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "a", "containers": [{"name": "trainer", "env": [WIDE]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.9"},
    }
    cache = Cache()
    assert cache.child_event("Pod", None, pod) == ("n", "r")
    (kept,) = cache.children("Pod", ("n", "r"))
    assert len(json.dumps(kept)) < 1000
    assert PodView.of(kept) == PodView.of(pod)
