"""Whose a Job or pod is that carries a run's label."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.belonging import children

RUN = TrainingRun.of(
    {
        "metadata": {
            "name": "r",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "workers": {"image": "i"},
            "data": {"streams": [{"url": "s3://d"}]},
            "recipe": {"preset": "smoke"},
            "checkpoint": {"storage": "s3://c"},
        },
    }
)
LABELS = {"daybreak.dev/run": "r", "daybreak.dev/attempt": "1"}
JOB_NAME = "batch.kubernetes.io/job-name"


def owned(kind: str, name: str, uid: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "name": name, "uid": uid, "controller": True}]


def job(uid: str, owners: list[dict[str, Any]], name: str = "r-1") -> dict[str, Any]:
    metadata = {"name": name, "uid": uid, "labels": LABELS, "ownerReferences": owners}
    return {"metadata": metadata, "spec": {"parallelism": 1}}


JOBS = [
    job("ours", owned("TrainingRun", "r", "u")),
    job("former", owned("TrainingRun", "r", "the former run's")),
    job("a user's", [], "theirs"),
    job("another's", owned("Workflow", "w", "w"), "r-3"),
    job("orphan", [], "r-2"),
]


@pytest.mark.parametrize(
    ("owners", "label", "phase", "is_there", "stray"),
    [
        (owned("Job", "r-1", "ours"), "r-1", "Running", True, False),
        (owned("Job", "r-1", "ours"), "r-1", "Failed", True, False),
        (owned("Job", "r-1", "former"), "r-1", "Running", True, True),
        (owned("Job", "r-1", "gone"), "r-1", "Running", True, True),
        (owned("Job", "r-1", "gone"), "r-1", "Failed", False, False),
        ([], "r-1", "Running", True, True),
        ([], "r-prepare", "Running", True, True),
        ([], None, "Running", False, False),
        ([], "r-1-copy", "Running", False, False),
        (owned("Job", "theirs", "a user's"), "theirs", "Running", False, False),
        (owned("Job", "r-3", "another's"), "r-3", "Running", False, False),
        (owned("Job", "r-2", "orphan"), "r-2", "Running", True, True),
        (owned("Job", "other", "gone"), "other", "Running", False, False),
        (owned("ReplicaSet", "r-1", "gone"), None, "Running", False, False),
    ],
)
def test_the_label_alone_makes_no_pod_the_runs(
    owners: list[dict[str, Any]], label: str | None, phase: str, is_there: bool, stray: bool
) -> None:
    """Its workers are what its Jobs control; what an attempt or a former run left behind is waited
    for while it is at work; nobody else's pod is looked at, waited for or deleted."""
    named = {JOB_NAME: label} if label else {}
    metadata = {"name": "p", "uid": "p", "labels": LABELS | named, "ownerReferences": owners}
    found = children(RUN, JOBS, [{"metadata": metadata, "status": {"phase": phase}}])
    assert [view.uid for view in found.jobs] == ["ours"]
    assert [pod.stray for pod in found.pods] == ([stray] if is_there else [])
