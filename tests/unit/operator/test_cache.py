"""What the operator keeps in memory of what the watches bring."""

from __future__ import annotations

import json
from typing import Any

import pytest
from simulated_history import spec_of

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.belonging import children
from daybreak_operator.cache import Cache, slim_child
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


def rich(name: str, owner: str, role: dict[str, str], **parts: Any) -> dict[str, Any]:
    """A Job or pod with a value in every field of it that is read."""
    kind = "Job" if owner != "u" else "TrainingRun"
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": name,
            "labels": {"daybreak.dev/run": "r"} | role,
            "annotations": WIDE | {"batch.kubernetes.io/job-completion-index": "1"},
            "ownerReferences": [{"kind": kind, "name": "r", "uid": owner, "controller": True}],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
        },
        **parts,
    }


@pytest.mark.parametrize("role", [{"daybreak.dev/attempt": "3"}, {"daybreak.dev/role": "prepare"}])
def test_what_is_read_of_jobs_and_pods_is_kept(role: dict[str, str]) -> None:
    """The views of what the cache holds are those of the whole objects."""
    spec = {"parallelism": 4, "completions": 9, "suspend": True, "template": WIDE}
    failed = {"type": "Failed", "status": "True", "message": "why"}
    status = {"conditions": [failed], "completedIndexes": "0-2", "succeeded": 3}
    job = rich("r-job", "u", role, spec=spec, status=status)
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}}
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    said = {
        "phase": "Running",
        "podIP": "10.0.0.9",
        "reason": "Evicted",
        "message": "disk",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Why"}],
        "initContainerStatuses": [{"name": "first", "state": waiting}],
        "containerStatuses": [{"name": "trainer", "state": ended}],
    }
    pod = rich("pod", "r-job", role, spec={"nodeName": "a", "volumes": WIDE}, status=said)
    orphan = rich("orphan", "r-job", role, spec={}, status=said)
    orphan["metadata"] |= {"ownerReferences": []}
    orphan["metadata"]["labels"] |= {"batch.kubernetes.io/job-name": "r-2"}
    bodies = [pod, orphan]
    known = {"name": "r", "namespace": "n", "uid": "u", "resourceVersion": "1"}
    born = {"creationTimestamp": "2026-01-01T00:00:00Z"}
    run = TrainingRun.of({"metadata": known | born, "spec": spec_of()})
    whole = children(run, [job], bodies)
    assert [view.stray for view in whole.pods] == [False, True]
    assert whole.preparation is None or whole.preparation.lacks_pods
    assert children(run, [slim_child(job)], [slim_child(body) for body in bodies]) == whole
