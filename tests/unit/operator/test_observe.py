"""When the API server itself is asked, and when what the watches told is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from simulated_api import KEY, Api
from simulated_cluster import SimulatedCluster
from simulated_history import spec_of
from simulated_objects import moment
from simulated_operator import at_once

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cache import Cache
from daybreak_operator.children.prepare import prepare_job
from daybreak_operator.observe import Observer


@dataclass
class Counting(Api):
    """The API server, and how often it was asked for a run's Jobs and pods."""

    asked: int = 0

    async def children(self, run: TrainingRun) -> dict[str, list[dict[str, Any]]]:
        self.asked += 1
        return await super().children(run)


@pytest.mark.parametrize(("conditions", "asked"), [([], 0), (["Complete"], 1), (["Failed"], 1)])
def test_a_run_whose_data_is_being_prepared_asks_for_no_lists(
    conditions: list[str], asked: int
) -> None:
    """It may have thousands of pods and is looked at every few seconds. What ends it, or lets the
    first attempt begin, is asked for."""
    api = Counting(SimulatedCluster({}))
    data = {"streams": [{"url": "s3://d"}], "prepare": {"source": "digits", "nodes": 4096}}
    api.create(spec_of(data=data))
    assert api.run is not None
    run = TrainingRun.of(api.run)
    job = prepare_job(run)
    job["metadata"]["uid"] = "p"
    job["status"] = {"conditions": [{"type": kind, "status": "True"} for kind in conditions]}
    cache = Cache()
    cache.run_event("ADDED", api.run)
    cache.child_event("Job", "ADDED", job)
    observer = Observer(
        cache,
        api,  # type: ignore[arg-type]
        api,  # type: ignore[arg-type]
        now=lambda: moment(0),
        monotonic=lambda: -1e9,
    )
    at_once(observer.observe(KEY, run))
    assert api.asked == asked
