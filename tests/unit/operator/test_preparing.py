"""Data preparation as a phase of the run: `decide` with the Job of `data.prepare`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from simulated_history import History, spec_of

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.decide import Decision, decide
from daybreak_operator.decision import JobRef
from daybreak_operator.observation import (
    COMPLETION_INDEX,
    FixedRecipe,
    Observation,
    PodView,
    PreparationView,
)
from daybreak_trainer.contract import Termination
from daybreak_trainer.recipe import resolve

RECIPE = FixedRecipe.of(resolve({"preset": "smoke"}))
SPEC: dict[str, Any] = {
    "workers": {"image": "i", "nodes": 1},
    "data": {"streams": [{"url": "s3://d"}], "prepare": {"source": "digits"}},
    "recipe": {"preset": "smoke"},
    "checkpoint": {"storage": "s3://c"},
}
JOB = PreparationView("r-prepare", done=False, failed=None, uid="p")


def look(
    status: TrainingRunStatus,
    view: PreparationView | None,
    later: int = 0,
    pods: tuple[PodView, ...] = (),
    queue_says: str | None = None,
    **spec: Any,
) -> Decision:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    run = TrainingRun(
        name="r",
        namespace="n",
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(SPEC | spec),
        status=status,
        raw_recipe={"preset": "smoke"},
        created=start,
    )
    seen = Observation(
        run=run,
        recipe=RECIPE,
        recipe_problem=None,
        jobs=(),
        pods=pods,
        missing=(),
        foreign=(),
        progress=None,
        now=start + timedelta(seconds=later),
        preparation=view,
        queue_says=queue_says,
    )
    decision = decide(seen)
    assert decision is not None
    return decision


def test_the_data_is_prepared_before_the_first_attempt() -> None:
    """The phase is on record before its Job is made; the attempt begins when it is done, and the
    time is no attempt's."""
    first = look(TrainingRunStatus(), None)
    assert (first.status.phase, first.create_job, first.status.attempt) == ("Preparing", None, 0)
    second = look(first.status, None, 1)
    assert second.create_job is not None
    assert second.create_job["metadata"]["name"] == "r-prepare"
    third = look(second.status, JOB, 60)
    assert (third.status.phase, third.create_job) == ("Preparing", None)
    done = look(third.status, replace(JOB, done=True), 100)
    assert (done.status.phase, done.status.attempt) == ("Starting", 1)
    assert done.status.preparation is not None
    assert done.status.preparation.state == "Done"
    assert done.status.ledger is not None
    assert done.status.ledger.lost_seconds == {"preparation": 100}
    assert done.status.ledger.held_seconds == 0
    assert look(done.status, None, 101).create_job["metadata"]["name"] == "r-1"  # type: ignore[index]


def test_what_preparation_could_not_do_ends_the_run() -> None:
    """In the words of the pod that failed first."""
    status = look(TrainingRunStatus(), None).status
    failed = look(status, replace(JOB, failed="shapes: no room"), 5)
    assert (failed.status.phase, failed.create_job) == ("Failed", None)
    (condition,) = (c for c in failed.status.conditions if c.type == "Failed")
    assert (condition.reason, condition.message) == ("PreparationFailed", "shapes: no room")
    failure = failed.status.last_failure
    assert failure is not None
    assert (failure.reason, failure.class_) == ("PreparationFailed", "Data")


def test_a_suspended_run_prepares_nothing() -> None:
    """Its Job goes, and another goes on where the pods of this one stopped."""
    status = look(TrainingRunStatus(), None).status
    suspended = look(status, JOB, 5, suspend=True)
    assert (suspended.status.phase, suspended.delete_jobs) == (
        "Suspended",
        (JobRef("r-prepare", "p"),),
    )
    body = {"metadata": {"name": "p", "uid": "p", "labels": {"daybreak.dev/role": "prepare"}}}
    for pods, true in (((PodView.of(body),), "False"), ((), "True")):
        status = look(suspended.status, replace(JOB, deleting=True), 7, pods, suspend=True).status
        (condition,) = (c for c in status.conditions if c.type == "Suspended")
        assert condition.status == true  # who waits for it wants the nodes
    again = look(suspended.status, None, 9)
    assert again.create_job is not None
    assert again.create_job["metadata"]["name"] == "r-prepare"


@pytest.mark.parametrize("condition", ["Failed", "FailureTarget"])
def test_the_first_pod_that_failed_says_why(condition: str) -> None:
    """Its termination message; the Job's own where no pod has left one. That the Job will fail is
    enough: it may wait long for a pod on a node that does not answer."""
    body = {
        "metadata": {"name": "r-prepare", "uid": "p", "labels": {"daybreak.dev/role": "prepare"}},
        "status": {"conditions": [{"type": condition, "status": "True", "message": "index 0"}]},
    }
    pod = PodView(
        name="p",
        attempt=0,
        index=0,
        phase="Failed",
        ready=False,
        deleting=False,
        disrupted=None,
        address=None,
        exit_code=65,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        termination=Termination(reason="BadData", message="no captions", exit_code=65),
        waiting=None,
        message="",
        prepares=True,
    )
    later = replace(
        pod,
        finished_at=datetime(2026, 1, 2, tzinfo=UTC),
        termination=Termination(reason="BadData", message="later", exit_code=65),
    )
    assert PreparationView.of(body, [later, pod]).failed == "no captions"
    assert PreparationView.of(body, []).failed == "index 0"


def test_a_failed_run_prepares_no_further() -> None:
    """Its Job would make the pods anew that are deleted; one that has ended keeps its logs."""
    status = look(TrainingRunStatus(), None).status
    failed = look(status, JOB, 90, deadline="2026-01-01T00:01:00Z").status
    assert failed.phase == "Failed"
    assert look(failed, JOB, 91).delete_jobs == (JobRef("r-prepare", "p"),)
    assert look(failed, replace(JOB, deleting=True), 92).delete_jobs == ()
    assert look(failed, replace(JOB, failed="no room"), 92).delete_jobs == ()


def test_what_preparation_waits_for_is_said() -> None:
    """Nothing ends that wait, so a condition names it."""
    body = {
        "metadata": {"name": "p", "uid": "p", "labels": {"daybreak.dev/role": "prepare"}},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "no\nnode"}]
        },
    }
    status = look(TrainingRunStatus(), None).status
    waits = look(status, JOB, 5, pods=(PodView.of(body),)).status
    (condition,) = (c for c in waits.conditions if c.type == "Degraded")
    assert condition.reason == "PreparationWaits"
    assert condition.message.startswith("pod p: no node; each of spec.data.prepare.nodes (1) asks")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"completions": 2, "suspend": True}, "waits for its queue to admit it: no quota"),
        ({"completions": 2}, "`kubectl describe job r-prepare` says why"),
    ],
)
def test_a_job_without_pods_names_what_it_waits_for(spec: dict[str, Any], said: str) -> None:
    """A queue that has not admitted it, or a quota that refuses its pods."""
    view = PreparationView.of({"metadata": {"name": "r-prepare", "uid": "p"}, "spec": spec}, [])
    status = look(look(TrainingRunStatus(), None).status, view, 5, queue_says="no quota").status
    assert status.phase == "Preparing"
    (condition,) = (c for c in status.conditions if c.type == "Running")
    assert said in condition.message
    (condition,) = (c for c in status.conditions if c.type == "Admitted")
    assert (said in condition.message) == bool(spec.get("suspend"))


def test_a_pod_that_has_done_its_part_is_not_missed() -> None:
    """Nor before its Job has counted it."""
    job = {"metadata": {"name": "r-prepare", "uid": "p"}, "spec": {"completions": 2}}
    pods = [
        PodView.of(
            {
                "metadata": {
                    "name": f"p-{index}",
                    "uid": f"p-{index}",
                    "labels": {"daybreak.dev/role": "prepare", COMPLETION_INDEX: str(index)},
                },
                "status": {"phase": phase},
            }
        )
        for index, phase in enumerate(("Succeeded", "Running"))
    ]
    assert not PreparationView.of(job, pods).lacks_pods
    assert not PreparationView.of(job | {"status": {"succeeded": 1}}, pods).lacks_pods
    assert PreparationView.of(job, pods[:1]).lacks_pods


def test_a_pod_on_a_dead_node_does_not_hold_up_preparation() -> None:
    """A minute after its grace period it is forced, and the Job, which would wait for it, goes."""
    body = {
        "metadata": {
            "name": "p",
            "uid": "p",
            "labels": {"daybreak.dev/role": "prepare"},
            "deletionTimestamp": "2026-01-01T00:02:00Z",
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByTaintManager",
                }
            ],
        },
    }
    pods = (PodView.of(body),)
    status = look(TrainingRunStatus(), None).status
    patient = look(status, JOB, 150, pods)
    assert (patient.delete_jobs, patient.delete_pods) == ((), ())
    (condition,) = (c for c in patient.status.conditions if c.type == "Degraded")
    assert condition.reason == "NodeSilent"
    for suspend in (False, True):
        forced = look(status, JOB, 190, pods, suspend=suspend)
        assert len(forced.delete_jobs) == 1
        assert [pod.at_once for pod in forced.delete_pods] == [True]
        going = look(status, replace(JOB, deleting=True), 190, pods, suspend=suspend)
        assert going.delete_jobs == ()
        assert len(going.delete_pods) == 1


def test_a_queue_that_takes_its_quota_back_uses_up_no_retry() -> None:
    """However often: its pods stop on request, and go on where they were."""
    made = History(spec_of(prepare=1), 2, queue=True)
    for _ in range(5):
        made.operator.advance(12)
        made.evict(0)
        made.operator.advance(10)
    made.operator.advance(120)
    assert made.status["preparation"]["state"] == "Done"
