"""A user corrects what the workers are made by, while these still wait."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_history import History, spec_of


def trainers(made: History) -> list[dict[str, Any]]:
    """Of each Job that was made."""
    specs = [body["spec"]["template"]["spec"] for body in made.api.created]
    return [container for spec in specs for container in spec["containers"]]


def correct(made: History, **workers: Any) -> None:
    made.api.edit(workers={"image": "i", "nodes": 2, **workers})


@pytest.mark.parametrize("queue", [True, False])
def test_workers_that_wait_for_nodes_ask_for_what_is_wanted_now(queue: bool) -> None:
    """In a queue or not; once, and free of charge."""
    made = History(
        spec_of(workers={"resources": {"limits": {"nvidia.com/gpu": 64}}}), 0, queue=queue
    )
    made.operator.advance(60)
    correct(made, resources={"limits": {"nvidia.com/gpu": 8}})
    made.operator.advance(600)
    assert [t["resources"]["limits"]["nvidia.com/gpu"] for t in trainers(made)] == [64, 8]
    assert made.status["currentAttempt"]["devicesPerNode"] == 8
    assert (made.status["phase"], made.status.get("interruptions", 0)) == ("Queued", 0)


def test_a_corrected_image_is_tried() -> None:
    """With the whole of imagePullDeadline; nothing more has to be done than correct it."""
    made = History(spec_of(workers={"image": "registry/bad:1"}), 2)
    made.image(False)
    made.operator.advance(150)
    told = next(c for c in made.status["conditions"] if c["type"] == "Degraded")
    assert "registry/bad:1" in told["message"]
    assert "suspend" not in told["message"]
    correct(made, image="registry/good:2")
    made.operator.advance(150)
    assert [t["image"] for t in trainers(made)] == ["registry/bad:1", "registry/good:2"]
    made.image(True)
    made.operator.advance(60)
    assert (made.status["phase"], made.status["restarts"]) == ("Running", 0)


def test_workers_at_work_keep_what_they_have() -> None:
    """Until the next attempt, as is said of the image."""
    made = History(spec_of(), 2)
    made.operator.advance(30)
    correct(made, image="other")
    made.operator.advance(60)
    assert [t["image"] for t in trainers(made)] == ["i"]


def test_a_job_of_an_earlier_version_is_left_as_it_is() -> None:
    """What its workers were made by is not known."""
    made = History(spec_of(), 0)
    made.operator.advance(10)
    (job,) = made.cluster.jobs.values()
    job.manifest["metadata"]["annotations"] = {}
    correct(made, image="other")
    made.operator.advance(60)
    assert [t["image"] for t in trainers(made)] == ["i"]
