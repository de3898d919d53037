"""The Job of an attempt, as the API server gets it."""

from __future__ import annotations

from typing import Any

import pytest

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.children.job import job
from daybreak_operator.observation import FixedRecipe
from daybreak_trainer.recipe import resolve

RECIPE = FixedRecipe.of(resolve({"preset": "smoke"}))


def environment(workers: dict[str, Any]) -> dict[str, Any]:
    """The trainer container's environment, by name."""
    spec: dict[str, Any] = {
        "workers": {"image": "i", **workers},
        "data": {"streams": [{"url": "s3://d"}]},
        "recipe": {"preset": "smoke"},
        "checkpoint": {"storage": "s3://c"},
    }
    run = TrainingRun(
        name="r",
        namespace="n",
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(spec),
        status=TrainingRunStatus(),
        raw_recipe={"preset": "smoke"},
    )
    container = job(run, 1, RECIPE)["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


@pytest.mark.parametrize(
    ("resources", "processes", "threads"),
    [
        ({"requests": {"cpu": "500m"}}, "auto", "1"),
        ({"requests": {"cpu": "500m"}, "limits": {"cpu": 8}}, "auto", "8"),
        ({"limits": {"cpu": "8"}}, 3, "2"),
        ({"requests": {"memory": "1Gi"}}, 1, None),
        ({"requests": {"cpu": "many"}}, 1, None),
    ],
)
def test_ranks_compute_with_the_cpus_that_are_theirs(
    resources: dict[str, Any], processes: int | str, threads: str | None
) -> None:
    """Two pods on a node must not each start a thread for each of its CPUs."""
    given = environment({"resources": resources, "processesPerNode": processes})
    assert given.get("OMP_NUM_THREADS") == threads


def test_the_template_may_say_how_many_threads() -> None:
    """What the user lays over the pod wins."""
    container = {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "5"}]}
    given = environment(
        {
            "resources": {"limits": {"cpu": 8}},
            "template": {"spec": {"containers": [container]}},
        }
    )
    assert given["OMP_NUM_THREADS"] == "5"
