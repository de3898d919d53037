"""What watches never tell, tell late or in the wrong order: looks do not depend on it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException
from one_run_server import (
    JOB,
    KEY,
    LABELS,
    POD,
    RUN,
    Server,
    api_server,
    between_attempts,
    changed,
    serving,
)

from daybreak_operator import metrics
from daybreak_operator.cache import Cache
from daybreak_operator.gone import forget_gone

GONE = {"details": {"name": "r", "kind": "trainingruns"}}


def _over(**spec: Any) -> dict[str, Any]:
    run = changed(RUN, phase="Complete", completionTime="2026-01-01T01:00:00Z")
    run["spec"] |= spec
    return run


def test_a_run_created_again_stays_known_when_its_predecessor_is_heard_of_later() -> None:
    """kopf hands on each object's events by itself: those of two objects of one name may change
    places."""
    cache = Cache()
    former, later = changed(RUN), changed(RUN)
    later["metadata"] |= {"uid": "later", "resourceVersion": "10"}
    cache.run_event("ADDED", former)
    cache.run_event("ADDED", later)
    former["metadata"]["resourceVersion"] = "9"
    cache.run_event("MODIFIED", former)
    cache.run_event("DELETED", former)
    assert cache.runs[KEY]["metadata"]["uid"] == "later"


@pytest.mark.parametrize("policy", ["Running", "All", "None"])
async def test_a_pod_that_went_unheard_of_keeps_no_run_for_ever(policy: str) -> None:
    """It is deleted again and again until the API server has been asked. The time to live goes
    on."""
    server, cache, clock = Server(no_run=GONE), Cache(), [0.0]
    cache.run_event("ADDED", _over(cleanPodPolicy=policy, ttlSecondsAfterFinished=60))
    pod = changed(POD)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cache.child_event("Pod", None, pod)
    async with serving(server, cache, lambda: clock[0]) as controller:
        for _ in range(6):
            await controller.reconcile(KEY)
            clock[0] += 5.0
    assert server.writes == []
    assert KEY not in cache.runs


async def test_a_run_that_went_unheard_of_is_forgotten() -> None:
    """One that is over is written to no more, so no answer tells; what was its goes too, later: it
    may only be heard of late."""
    server, cache = Server(runs=[{"metadata": {"uid": "there"}}]), Cache()
    cache.run_event("ADDED", _over())
    cache.child_event("Job", None, JOB)
    other = _over()
    other["metadata"] |= {"name": "s", "uid": "there"}
    cache.run_event("ADDED", other)
    async with api_server(server) as cluster:
        assert await forget_gone(cache, cluster) == [KEY]
        assert list(cache.runs) == [("n", "s")]
        assert cache.children("Job", KEY) == [JOB | {"spec": {"parallelism": 1}}]
        assert await forget_gone(cache, cluster) == []
    assert cache.children("Job", KEY) == []


async def test_every_now_and_then_it_is_asked_what_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daybreak_operator.controller._RESYNC_SECONDS", 0.01)
    server, cache = Server(), Cache()
    cache.run_event("ADDED", _over())
    async with serving(server, cache) as controller:
        controller.start()
        while KEY in cache.runs:
            await asyncio.sleep(0.01)
    assert "/apis/daybreak.dev/v1alpha1/namespaces/n/trainingruns" in server.reads


async def test_a_job_that_was_not_heard_of_yet_holds_up_suspension() -> None:
    """Its run is not suspended before its pods are gone."""
    attempt = {"number": 1, "nodes": 1, "createdTime": "2026-01-01T00:00:00Z"}
    run = changed(RUN, phase="Starting", currentAttempt=attempt)
    del run["status"]["workers"]
    run["spec"]["suspend"] = True
    server, cache = Server(jobs=[JOB], pods=[POD], run=run), Cache()
    cache.run_event("ADDED", run)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    (told,) = [
        condition
        for condition in server.statuses()[-1]["conditions"]
        if condition["type"] == "Suspended"
    ]
    assert (told["status"], told["reason"]) == ("False", "Stopping")


async def test_our_own_write_is_no_conflict() -> None:
    """A status that waited is written together with what is decided; the run is then what that
    write has made it."""
    server, version = Server(refusal="used: 1"), [7]
    server.configs["r-recipe-then"] = {"data": {"recipe.json": "words of then"}}

    def written() -> None:
        version[0] += 1
        server.version = str(version[0])

    server.on_status = written
    async with serving(server, between_attempts("then")) as controller:
        for used in ("used: 1", "used: 2", "used: 1"):
            server.refusal = used
            for _ in range(2):
                await controller.reconcile(KEY)
        server.refusal = None
        before = metrics.STATUS_CONFLICTS._value.get()
        await controller.reconcile(KEY)
        assert metrics.STATUS_CONFLICTS._value.get() == before
    assert server.written()[-1] == "jobs"


async def test_a_pod_that_may_not_be_deleted_keeps_no_other() -> None:
    server, cache = Server(pods=[], jobs=[JOB]), Cache()
    run = changed(RUN, phase="Failed", completionTime="2026-01-01T01:00:00Z")
    cache.run_event("ADDED", run)
    cache.child_event("Job", None, JOB)
    for name in ("r-1-0", "r-1-1"):
        pod = changed(POD)
        pod["metadata"] |= {"name": name, "uid": name, "labels": dict(LABELS)}
        server.pods.append(pod)
        cache.child_event("Pod", None, pod)
    server.keeps = "r-1-0"
    async with serving(server, cache) as controller:
        with pytest.raises(ApiException, match="forbidden"):
            await controller.reconcile(KEY)
    assert [pod["metadata"]["name"] for pod in server.pods] == ["r-1-0"]


async def test_a_run_of_another_controllers_is_left_alone_though_it_cannot_be_read() -> None:
    run = changed(RUN, fromTheFuture=1)
    run["spec"]["managedBy"] = "example.com/other"
    server, cache = Server(run=run), Cache()
    cache.run_event("ADDED", run)
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
    assert server.writes == []


async def test_a_refusal_is_not_told_of_a_successor() -> None:
    """The run was deleted and made again before the next look."""
    server = Server(refusal="not for this one")
    server.configs["r-recipe-then"] = {"data": {"recipe.json": "words of then"}}
    cache = between_attempts("then")
    async with serving(server, cache) as controller:
        await controller.reconcile(KEY)
        former = dict(cache.runs[KEY])
        again = changed(RUN, phase="Pending", attempt=0, workers=None, currentAttempt=None)
        again["metadata"] |= {"uid": "later", "resourceVersion": "10"}
        cache.run_event("ADDED", again)
        cache.run_event("DELETED", former)
        server.refusal = None
        await controller.reconcile(KEY)
    assert "not for this one" not in str(server.statuses()[-1])
