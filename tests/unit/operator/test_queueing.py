"""What of a run the queues of a cluster get to see, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.children.job import job
from daybreak_operator.children.queueing import held_back, no_room, refusal, unheard
from daybreak_operator.observation import FixedRecipe, PodView
from daybreak_trainer.recipe import resolve

RECIPE = FixedRecipe.of(resolve({"preset": "smoke"}))
KUEUE, VOLCANO = "kueue.x-k8s.io/", "scheduling.volcano.sh/"


def a_run(template: dict[str, Any] | None = None, **metadata: dict[str, str]) -> TrainingRun:
    """A run on three nodes with these labels and annotations."""
    return TrainingRun.of(
        {
            "metadata": {
                **{"name": "r", "namespace": "n", "uid": "u", "resourceVersion": "1"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                **metadata,
            },
            "spec": {
                "workers": {"image": "i", "nodes": 3, "template": template or {}},
                "data": {"streams": [{"url": "s3://d"}]},
                "recipe": {"preset": "smoke"},
                "checkpoint": {"storage": "s3://c"},
            },
        }
    )


def for_queues(made: dict[str, Any]) -> dict[str, str]:
    """A Job's annotations but for our own."""
    found = made["metadata"]["annotations"].items()
    return {name: value for name, value in found if "daybreak" not in name}


def test_kueue_finds_its_labels_on_the_job_and_the_topology_on_the_pods() -> None:
    """Only what a user says; a workload's name, say, would be wrong for the second attempt."""
    asked = {f"{KUEUE}queue-name": "research", f"{KUEUE}priority-class": "high"}
    topology = {f"{KUEUE}podset-preferred-topology": "example.com/rack"}
    provisioning = {"provreq.kueue.x-k8s.io/maxRunDurationSeconds": "600"}
    made = job(
        a_run(
            labels=asked | {f"{KUEUE}prebuilt-workload-name": "w", "team": "a"},
            annotations=topology | provisioning | {f"{KUEUE}other": "x", "note": "mine"},
        ),
        1,
        RECIPE,
        nodes=3,
    )
    labels = made["metadata"]["labels"]
    assert {k: v for k, v in labels.items() if "daybreak" not in k + v} == asked
    assert for_queues(made) == provisioning
    assert made["spec"]["template"]["metadata"]["annotations"] == topology


def test_volcano_starts_all_workers_or_none() -> None:
    """It takes the number of the attempt's workers from the Job, its queue from the pods; the
    number is only there where it schedules."""
    asked = {f"{VOLCANO}queue-name": "research"}
    template = {"spec": {"schedulerName": "volcano"}, "metadata": {"annotations": {"mine": "too"}}}
    made = job(a_run(template, annotations=asked), 1, RECIPE, nodes=2)
    assert for_queues(made) == {f"{VOLCANO}group-min-member": "2"}
    assert made["spec"]["template"]["metadata"]["annotations"] == asked | {"mine": "too"}
    assert for_queues(job(a_run(), 1, RECIPE, nodes=3)) == {}


def test_a_gang_without_room_names_where_volcano_says_what_is_short() -> None:
    """Its PodGroup has the name of the Job's UID; other schedulers have said it all themselves."""
    template = {"spec": {"schedulerName": "volcano"}}
    said = no_room(a_run(template, annotations={f"{VOLCANO}queue-name": "research"}), "f00")
    assert "`kubectl describe podgroups.scheduling.volcano.sh podgroup-f00`" in said
    assert "Queue research" in said
    assert "Queue default" in no_room(a_run(template), "f00")
    assert no_room(a_run(), "f00") == ""


def test_a_worker_that_would_have_a_node_is_not_asked_why_its_gang_waits() -> None:
    """Volcano says of it where it could be put; what is lacking it says of another."""

    def said(reason: str) -> str | None:
        waits = {"type": "PodScheduled", "status": "False", "reason": reason, "message": "why"}
        body = {"metadata": {"name": "p", "uid": "u"}, "status": {"conditions": [waits]}}
        return PodView.of(body).unschedulable

    assert said("Schedulable") is None
    assert said("Unschedulable") == "why"


def test_a_scheduler_that_says_nothing_is_named() -> None:
    """Volcano says nothing where the Queue is not there, nor does one that is not installed."""
    lost = unheard(a_run({"spec": {"schedulerName": "volcano"}}))
    assert lost is not None
    assert lost.endswith("it does not run, or there is no Queue default")
    other = unheard(a_run({"spec": {"schedulerName": "ours"}}))
    assert other is not None
    assert "scheduler ours has not looked" in other
    assert "Queue" not in other
    assert unheard(a_run()) is None


@pytest.mark.parametrize(
    ("annotation", "value"), [("job-min-parallelism", "2"), ("elastic-job", "true")]
)
def test_a_number_of_workers_that_kueue_chooses_is_refused(annotation: str, value: str) -> None:
    """The sentence names the annotation and what to do instead."""
    said = refusal(a_run(annotations={KUEUE + annotation: value}))
    assert said is not None
    assert KUEUE + annotation in said
    assert "Remove the annotation" in said


def test_kueue_is_quoted() -> None:
    """The quota first, then what has to be checked beside it; before it has looked, nothing."""

    def workload(*conditions: tuple[str, str, str]) -> dict[str, Any]:
        keys = ("type", "status", "message")
        return {"status": {"conditions": [dict(zip(keys, c, strict=True)) for c in conditions]}}

    waits = ("Admitted", "False", "waiting for checks")
    assert held_back([]) is None
    assert held_back([{}]) is None
    assert held_back([workload(waits, ("QuotaReserved", "False", "2 more"))]) == "2 more"
    assert held_back([workload(("QuotaReserved", "True", ""), waits)]) == "waiting for checks"


def test_other_annotations_are_not_refused() -> None:
    assert refusal(a_run(annotations={f"{KUEUE}elastic-job": "false", "note": "mine"})) is None
