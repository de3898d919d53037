"""What the operator keeps in memory of what the watches bring."""

from __future__ import annotations

import json
from typing import Any

import pytest
from one_run_server import (
    JOB,
    KEY,
    POD,
    RUN,
    changed,
)
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


def test_the_cache_keeps_the_successor_of_a_deleted_object() -> None:
    """Events of two objects of one name may come in the wrong order."""
    cache = Cache()
    new = {"metadata": RUN["metadata"] | {"uid": "new"}}
    cache.run_event("ADDED", new)
    cache.run_event("DELETED", RUN)
    assert cache.runs[KEY] == new
    job = {"metadata": JOB["metadata"] | {"uid": "new"}, "spec": {}}
    cache.child_event("Job", "ADDED", job)
    cache.child_event("Job", "DELETED", JOB)
    assert cache.children("Job", KEY) == [job]
    cache.child_event("Job", "DELETED", job)
    assert cache.children("Job", KEY) == []


def test_the_cache_keeps_what_is_read() -> None:
    """A pod's containers, a Job's template and the managers of fields are most of an object."""
    cache = Cache()
    managed = {"managedFields": [{"manager": "kubelet"}]}
    pod = POD | {
        "metadata": POD["metadata"] | managed,
        "spec": {"nodeName": "a", "containers": [{"name": "trainer"}]},
    }
    assert "template" in JOB["spec"]
    cache.child_event("Job", None, JOB)
    cache.child_event("Pod", None, pod)
    assert cache.children("Job", KEY) == [JOB | {"spec": {"parallelism": 1}}]
    assert cache.children("Pod", KEY) == [POD | {"spec": {"nodeName": "a"}}]


def test_an_answer_does_not_undo_what_a_watch_has_brought() -> None:
    """A user's change of the run overtakes the answer to our write before it: nobody would tell of
    it again."""

    def version(number: str) -> dict[str, Any]:
        return RUN | {"metadata": RUN["metadata"] | {"resourceVersion": number}}

    cache = Cache()
    cache.run_event(None, version("7"))
    cache.wrote("7", version("8"))
    assert cache.runs[KEY]["metadata"]["resourceVersion"] == "8"
    cache.run_event("MODIFIED", version("10"))
    cache.wrote("8", version("9"))
    assert cache.runs[KEY]["metadata"]["resourceVersion"] == "10"


def test_a_late_event_does_not_undo_an_answer() -> None:
    """The events of our own writes come after their answers, one after the other."""
    cache = Cache()
    cache.run_event(None, RUN)
    for before, after in (("7", "8"), ("8", "9")):
        newer = changed(RUN)
        newer["metadata"]["resourceVersion"] = after
        cache.wrote(before, newer)
    for version, known in (("8", "9"), ("9", "9"), ("10", "10")):
        told = changed(RUN)
        told["metadata"]["resourceVersion"] = version
        cache.run_event("MODIFIED", told)
        assert cache.runs[KEY]["metadata"]["resourceVersion"] == known
